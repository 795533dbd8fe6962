"""Rows that are appended, cut off, repaired and found again."""

import json
import os
from contextlib import nullcontext

import pytest

from brim.errors import RunError
from brim.support.files import write_sealed_json
from brim.support.json_lines import JsonLines
from brim.support.seals import beginning_damage, file_damage, record_of

ROWS = [{"n": 1, "text": "é\u2028\n"}, {"n": 2}, {"n": 2, "x": [0.1, None]}, {"n": 5}]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def file(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.append(*ROWS[:2])
    lines.append(*ROWS[2:])
    return lines


def test_rows_come_back_in_order_by_place_and_by_offset(file):
    assert list(file.rows()) == ROWS
    assert list(file.rows(lambda row: row["n"], at={1, 3})) == [2, 5]
    offsets = file.offsets().tolist()
    assert [file.row_at(offset) for offset in offsets[:-1]] == ROWS
    assert offsets[-1] == file.path.stat().st_size
    assert file.path.read_bytes().count(b"\n") == len(ROWS)


def test_of_no_file_there_is_nothing(tmp_path):
    lines = JsonLines(tmp_path / "none.jsonl")
    assert (list(lines.rows()), lines.offsets().tolist()) == ([], [0])
    lines.cut_after("n", 3)
    lines.sync()
    assert lines.record["bytes"] == 0
    assert not lines.path.exists()


@pytest.mark.parametrize("line", [b'{"n": 2', b"[1]", b"{}", b'{"n": {}}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_is_named_with_its_remedy_unless_it_is_not_wanted(file, line):
    whole = file.path.read_bytes().split(b"\n")
    file.path.write_bytes(b"\n".join([whole[0], line, *whole[2:]]))
    with pytest.raises(RunError, match=r"rows.jsonl:2: damaged: .*; do this$"):
        list(file.rows(lambda row: row["n"] + 0, remedy="do this"))
    assert list(file.rows(at={0, 3})) == [ROWS[0], ROWS[3]]


def test_an_unfinished_line_is_left_out_only_where_another_process_may_write_it(file):
    with file.path.open("ab") as raw:
        raw.write(b'{"n": 6')
    assert list(file.rows(growing=True)) == ROWS
    with pytest.raises(RunError, match="rows.jsonl:5"):
        list(file.rows())
    assert len(file.offsets()) - 1 == len(ROWS)


@pytest.mark.parametrize(("last", "kept"), [(0, 0), (1, 1), (2, 3), (4, 3), (5, 4), (9, 4)])
@pytest.mark.parametrize("tail", [b"", b'{"n": 7', b"{}\n"])
def test_rows_behind_a_key_are_cut_off(file, last, kept, tail):
    with file.path.open("ab") as raw:
        raw.write(tail)
    file.cut_after("n", last)
    assert list(file.rows()) == ROWS[:kept]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_number_that_json_does_not_have_is_refused(tmp_path, recorded):
    lines = JsonLines(tmp_path / "rows.jsonl", recorded=recorded)
    with pytest.raises(ValueError, match="JSON compliant"):
        lines.append({"x": float("nan")})
    assert not lines.path.exists()


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_knows_what_is_in_it(tmp_path, count):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    lines = JsonLines(path)
    for row in ROWS[:count]:
        lines.append(row)
        assert lines.record == record_of(path)
    record = lines.record
    lines.append({"later": True})
    assert beginning_damage(path, record) is None
    assert file_damage(path, record) is not None
    lines.cut(record["bytes"])
    assert lines.record == record == record_of(path)


def test_damage_of_a_beginning_is_seen(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    record = record_of(path)
    path.write_bytes(b"one\ntwe\nthree\n")
    assert "SHA-256" in beginning_damage(path, record)
    path.write_bytes(b"one\n")
    assert "4 bytes instead of 8" in beginning_damage(path, record)
    path.unlink()
    assert beginning_damage(path, record) == "is missing"
    assert beginning_damage(path, {**JsonLines(path).record}) is None


def test_what_a_stop_left_half_written_is_cut_off(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl", recorded=True)
    assert lines.repair() is None
    lines.append(ROWS[0])
    first = lines.path.read_bytes()
    with lines.path.open("ab") as raw:
        raw.write(b"tw")
    again = JsonLines(lines.path, recorded=True)
    assert again.repair() is None
    assert lines.path.read_bytes() == first
    again.append(ROWS[1])
    assert again.repair() is None
    assert [json.loads(line) for line in lines.path.open()] == ROWS[:2]
    again.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stop_behind_a_cut_or_within_it_costs_no_more_rows(tmp_path, monkeypatch, stopped):
    lines = JsonLines(tmp_path / "rows.jsonl", recorded=True)
    lines.append(ROWS[0])
    first = lines.path.read_bytes()
    lines.append(ROWS[1])

    def written_and_killed(path, value):
        write_sealed_json(path, value)
        raise KeyboardInterrupt

    if stopped:
        monkeypatch.setattr("brim.support.json_lines.write_sealed_json", written_and_killed)
    with pytest.raises(KeyboardInterrupt) if stopped else nullcontext():
        lines.cut(len(first))
    monkeypatch.undo()
    assert JsonLines(lines.path, recorded=True).repair() is None
    assert lines.path.read_bytes() == first


@pytest.mark.parametrize("spoiled", ["rows.jsonl", "rows.json"])
def test_of_a_damaged_file_nothing_is_kept(tmp_path, spoiled):
    lines = JsonLines(tmp_path / "rows.jsonl", recorded=True)
    lines.append(ROWS[0])
    lines.append(ROWS[1])
    flip(tmp_path / spoiled)
    assert JsonLines(lines.path, recorded=True).repair() is not None
    assert lines.path.read_bytes() == b""
