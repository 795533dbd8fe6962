"""The file of an evaluation's finished blocks."""

import json

import pytest
from filelock import FileLock

from brim.errors import RunError
from brim.training.partial import PartialResults
from brim.training.predictions import Block, Completion, Prediction

INPUTS = {"model": "0a", "decoding": {"max_tokens": 4, "top_k": None}, "metrics": ("bleu",)}


def make_block(number: int) -> Block:
    sample = Completion("é\u2028", 2, False, -0.1 - number, (5, 1))
    short = Completion("", 1, True, token_ids=(7,))
    rows = (
        Prediction(f"{number}a", "p", ("r", "s"), (sample, sample), "t", 1 / 3,
                   {"bleu": (0.1, 2.0)}, sampled=True),
        Prediction(f"{number}b", "p", (), (short,)),
    )  # fmt: skip
    return Block(rows, number)


def fill(path, inputs=INPUTS, blocks=2) -> bytes:
    partial = PartialResults(path, inputs)
    with partial.opened():
        for number in range(blocks):
            partial.append(make_block(number))
    return path.read_bytes()


def kept(path, inputs=INPUTS) -> list[Block]:
    partial = PartialResults(path, inputs)
    with partial.opened():
        return list(partial.blocks())


def test_blocks_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "folder" / ".test.partial.jsonl"
    fill(path)
    assert kept(path) == [make_block(0), make_block(1)]
    assert len(path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("tail", [b'{"num_tr', b"{}", b"\0" * 9, b"\0\n", b"[1, 2"])
def test_an_unfinished_line_is_cut_off(tmp_path, tail):
    path = tmp_path / "partial.jsonl"
    whole = fill(path)
    path.write_bytes(whole + tail)
    assert kept(path) == [make_block(0), make_block(1)]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("left", [0, 5])
def test_an_unfinished_header_is_begun_anew(tmp_path, left):
    path = tmp_path / "partial.jsonl"
    path.write_bytes(fill(path)[:left])
    assert kept(path) == []
    assert path.read_bytes() == fill(tmp_path / "other.jsonl", blocks=0)


def test_blocks_of_other_inputs_are_thrown_away_with_a_word(tmp_path, caplog):
    path = tmp_path / "partial.jsonl"
    fill(path)
    assert kept(path, {**INPUTS, "model": "0b", "seed": 3}) == []
    assert "another model, seed; thrown away" in caplog.text
    caplog.clear()
    fill(path, {**INPUTS, "model": "0b", "seed": 3})
    assert len(kept(path, {**INPUTS, "model": "0b", "seed": 3})) == 2
    assert not caplog.text


def test_two_evaluations_do_not_share_a_file(tmp_path):
    path = tmp_path / "partial.jsonl"
    expected = fill(path)
    with (
        FileLock(path.with_suffix(".lock")),
        pytest.raises(RunError, match="another process"),
        PartialResults(path, INPUTS).opened(),
    ):
        pass
    assert path.read_bytes() == expected


def test_what_is_published_is_one_prediction_a_line(tmp_path):
    path = tmp_path / "partial.jsonl"
    partial = PartialResults(path, INPUTS)
    with partial.opened():
        partial.append(make_block(0))
        partial.publish(tmp_path / "test.jsonl")
        partial.remove()
    assert not path.exists()
    lines = (tmp_path / "test.jsonl").read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines if line]
    assert [Prediction.from_dict(row) for row in rows] == [*make_block(0).predictions]
    assert "samples" in rows[0]
    assert "samples" not in rows[1]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="cannot write"),
        PartialResults(tmp_path / "file" / "partial.jsonl", INPUTS).opened(),
    ):
        pass
