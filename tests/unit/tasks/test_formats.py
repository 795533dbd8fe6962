"""Files as people have them: Parquet, JSON arrays, zstd; and what is wrong with strangers' ones."""

import json
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import DataError
from brim.examples import Example
from brim.tasks import Files, arrow, json_array, sources
from brim.tasks.rows import Columns, read_examples
from brim.tasks.sources import find_file, open_source
from brim.tasks.templates import Template

PLAIN = Columns(Template("{prompt}"), targets=("target",))
ROWS = [{"prompt": f"p{i} é", "target": [f"t{i}", "{]"], "n": i} for i in range(50)]


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read(path, columns=PLAIN, on_bad_row="skip"):
    skipped = Counter()
    source = open_source(str(path), "train")
    found = read_examples(source, columns, on_bad_row=on_bad_row, skipped=skipped)
    return [example for _, example in found], dict(skipped)


def expected(name, rows=ROWS, first=0):
    return [
        Example(f"{name}:{i}", row["prompt"], tuple(row["target"]))
        for i, row in enumerate(rows, first)
    ]


def fault(path):
    """The one line that ends the reading of a file, even where bad rows are left out."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


# JSON arrays


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_in_chunks_of_any_size(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk)
    path = tmp_path / "rows.json"
    text = json.dumps(ROWS, ensure_ascii=False, indent=indent).replace("\n", "\r\n")
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(f"\n {text} \n".encode(encoding))
        assert read(path) == (expected("rows.json"), {})


def test_lines_in_a_json_file_are_still_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in ROWS))
    assert read(path)[0] == expected("rows.json", first=2)


def test_a_bad_item_is_named_by_its_place_and_can_be_left_out(tmp_path):
    good = b'{"prompt": "p", "target": "t"}'
    bad = [
        (b"17", "not a JSON object"),
        (b'["p"]', "not a JSON object"),
        (b'{"prompt": "p", "prompt": "q", "target": "t"}', "key given twice"),
        (b'{"prompt": "p\xff", "target": "t"}', "invalid UTF-8"),
        (b'{"prompt": "\\ud800", "target": "t"}', 'field "prompt" has half of a character'),
        (b'{"prompt": "p"}', 'no field "target"'),
        (b'{"prompt": {"a": 1}, "target": "t"}', 'field "prompt" is an object, not text'),
    ]
    path = tmp_path / "rows.json"
    path.write_bytes(b"[" + b",\n".join([good, *(item for item, _ in bad), good]) + b"]")
    examples, skipped = read(path)
    assert [example.id for example in examples] == ["rows.json:0", f"rows.json:{len(bad) + 1}"]
    assert skipped == dict(Counter(reason for _, reason in bad))
    with pytest.raises(DataError, match=r"rows.json\[1\]: not a JSON object; each item must be"):
        read(path, on_bad_row="error")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", ": empty: no rows"),
        ("[", "[0]: broken JSON: Expecting value at character 1 of it"),
        ('[{"prompt": "p", "target": "t"}', "[1]: broken JSON: the array has no end"),
        ('[{"prompt": "p"} {"prompt": "q"}]', "[1]: broken JSON: no comma before it"),
        ('[{"prompt": "p"}] []', "[1]: broken JSON: text behind the end of the array"),
        ("[] []", "[0]: broken JSON: text behind the end of the array"),
        ('[{"prompt": "p"},]', "[1]: broken JSON: Expecting value at character 1 of it"),
        ('[{}, {"prompt" 1}, {}]', "[1]: broken JSON: Expecting ':' delimiter at character 11"),
        ('[{"prompt": "p', "[0]: broken JSON: Unterminated string"),
        ("[" * 100_000, "[0]: broken JSON: "),
    ],
)
def test_an_array_that_breaks_off_is_one_line(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert fault(path).startswith(message)


def test_an_item_longer_than_memory_allows_ends_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 10)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "p", "target": "t"}, {"prompt": "p" * 1000}]))
    assert fault(path).startswith("[1]: broken JSON: an item longer than ")


def test_an_array_is_never_held_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 2**16)
    monkeypatch.setattr(arrow, "BLOCK_BYTES", 2**16)
    path = tmp_path / "rows.json"
    task = Files(test=str(path), target_column=None)
    path.write_text('[{"prompt": "p"}]')
    task.load("test", cache_dir=tmp_path / "cache")  # imports what it needs
    path.write_text(json.dumps([{"prompt": f"{i} " + "x" * 20_000} for i in range(500)]))
    tracemalloc.start()
    assert len(task.load("test", cache_dir=tmp_path / "cache")) == 500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # of ten


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(items=st.lists(json_values), chunk=st.integers(1, 40), ascii_only=st.booleans())
def test_items_are_what_the_json_module_reads(tmp_path_factory, items, chunk, ascii_only):
    path = tmp_path_factory.mktemp("array") / "rows.json"
    path.write_text(json.dumps(items, ensure_ascii=ascii_only), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK_BYTES", chunk)
        found = list(open_source(str(path), "train").rows(()))
    assert [number for number, _ in found] == list(range(len(items)))
    for item, (_, row) in zip(items, found, strict=True):
        assert row == item if isinstance(item, dict) else row.reason == "not a JSON object"


# zstd


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_compressed_by_zstd_is_what_it_was(tmp_path, kind):
    text = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "json": json.dumps(ROWS),
        "csv": "prompt,target\n" + "".join(f"{row['prompt']},t\n" for row in ROWS),
    }[kind]
    plain, path = tmp_path / f"rows.{kind}", tmp_path / f"rows.{kind}.zst"
    plain.write_text(text)
    half = len(text.encode()) // 2
    # Two frames one behind the other, as parallel compressors and `cat` write them.
    path.write_bytes(zstd(text.encode()[:half]) + zstd(text.encode()[half:]))
    texts = [(e.prompt, e.references) for e in read(plain)[0]]
    assert [(e.prompt, e.references) for e in read(path)[0]] == texts
    assert len(texts) == len(ROWS)
    assert find_file(tmp_path / "x", "rows") is None
    plain.unlink()
    assert find_file(tmp_path, "rows") == path


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_damaged_zstd_file_is_one_line(tmp_path, kind):
    path = tmp_path / f"rows.{kind}.zst"
    text = json.dumps(ROWS * 100) if kind == "json" else (json.dumps(ROWS[0]) + "\n") * 5000
    for damaged in (zstd(text.encode())[:-20], text.encode()):
        path.write_bytes(damaged)
        assert "damaged zstd file: " in fault(path)


# Parquet


def test_a_parquet_file_is_read_in_batches(tmp_path):
    rows = [{**row, "chat": [{"role": "user", "content": row["prompt"]}]} for row in ROWS * 50]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    assert read(path) == (expected("rows.parquet", ROWS * 50), {})
    chats = read(path, Columns(None, messages="chat"))[0]
    assert [chat.messages[0]["content"] for chat in chats] == [row["prompt"] for row in rows]
    assert open_source(str(path), "train").position() == (0, len(rows))
    assert find_file(tmp_path, "rows") == path
    task = Files(train=str(path))
    cached = [list(task.load("train", cache_dir=tmp_path / "cache")) for _ in range(2)]
    assert cached[0] == cached[1] == list(task.load("train"))


def test_a_parquet_file_with_two_columns_of_a_name_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.table(columns, names=["prompt", "target", "target"]), path)
    with pytest.raises(DataError, match="has two columns 'target'; rename one"):
        read(path)


def test_bad_rows_of_a_parquet_file_are_named(tmp_path):
    texts = pa.array([b"p", b"\xff", None, b"q"]).cast(pa.binary())
    invalid = pa.Array.from_buffers(pa.string(), 4, texts.buffers())
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": invalid, "target": ["t"] * 4, "raw": [b"a"] * 4})
    pq.write_table(table, path)
    examples, skipped = read(path)
    assert [example.id for example in examples] == ["rows.parquet:0", "rows.parquet:3"]
    assert skipped == {"invalid UTF-8": 1, 'field "prompt" is null or an empty cell': 1}
    with pytest.raises(DataError, match=r"rows.parquet\[1\]: invalid UTF-8: 0xff; mend the row"):
        read(path, on_bad_row="error")
    with pytest.raises(DataError, match=r'\[0\]: field "raw" is bytes, not text'):
        read(path, Columns(Template("{raw}")), on_bad_row="error")


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 100), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    assert "damaged Parquet file: " in fault(path)
    path.write_bytes(data[:-30])
    assert "cannot be read as Parquet: " in fault(path)
