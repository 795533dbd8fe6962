"""The validator: every kind of bad row, by its exact `file:line`, from every kind of source."""

import csv
import gzip
import io
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.tasks import sources
from brim.tasks.cells import RowError
from brim.tasks.rows import Columns, read_examples
from brim.tasks.sources import FileSource, open_source
from brim.tasks.templates import Template

MISSING = "is null or an empty cell"
PLAIN = Columns(Template("{prompt}"), targets=("target",))
GOOD = b'{"prompt": "p", "target": "t"}\n'


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read(path, columns=PLAIN, on_bad_row="error"):
    """The examples of a file and the reasons of the rows that were left out."""
    skipped = Counter()
    source = open_source(str(path), "train")
    found = read_examples(source, columns, on_bad_row=on_bad_row, skipped=skipped)
    return [example for _, example in found], dict(skipped)


def problem(path, columns=PLAIN):
    with pytest.raises(DataError) as caught:
        read(path, columns)
    text = str(caught.value)
    assert "\n" not in text
    text = text.removesuffix(" mend the row, or leave bad rows out with task.on_bad_row=skip")
    return text.removesuffix(";")


BAD_LINES = [
    (b"{", "broken JSON", ": Expecting property name enclosed in double quotes at character 3"),
    (b'{"prompt": "p"', "broken JSON", None),
    (b'{"prompt": "p", "target": "t"} {}', "broken JSON", ": Extra data at character 32"),
    (b"[" * 100_000, "broken JSON", None),
    (b'["p", "t"]', "not a JSON object", None),
    (b'"p"', "not a JSON object", None),
    (b"null", "not a JSON object", None),
    (b'{"prompt": "p", "prompt": "q", "target": "t"}', "key given twice", ": 'prompt'"),
    (b'{"promt": "p", "target": "t"}', 'no field "prompt"',
     "; columns: 'promt', 'target'; did you mean 'promt'?"),
    (b'{"prompt": "p"}', 'no field "target"', "; columns: 'prompt'"),
    (b'{"prompt": null, "target": "t"}', f'field "prompt" {MISSING}', ""),
    (b'{"prompt": 3, "target": "t"}', 'field "prompt" is a number, not text', ""),
    (b'{"prompt": true, "target": "t"}', 'field "prompt" is true or false, not text', ""),
    (b'{"prompt": ["p"], "target": "t"}', 'field "prompt" is a list, not text', ""),
    (b'{"prompt": "p", "target": {"a": 1}}', 'field "target" is an object, not text', ""),
    (b'{"prompt": "", "target": "t"}', 'field "prompt" is empty', ""),
    (b'{"prompt": "p", "target": " \\n\\t"}', 'field "target" is empty', ""),
    (b'{"prompt": "p", "target": []}', 'field "target" is an empty list', ""),
    (b'{"prompt": "p", "target": ["t", null]}', f'an item of field "target" {MISSING}', ""),
    (b'{"prompt": "p\\u0000", "target": "t"}', 'field "prompt" has a NUL character', ""),
    (b'{"prompt": "\\ud800", "target": "t"}', 'field "prompt" has half of a character',
     ", \\ud800 alone"),
    (b'{"prompt": "p\0", "target": "t"}', "NUL byte", " at byte 14 of the line"),
    (b'{"prompt": "p\xff", "target": "t"}', "invalid UTF-8", ": 0xff at byte 14 of the line"),
    (b'{"unused": "\xc3(", "prompt": "p", "target": "t"}', "invalid UTF-8", None),
]  # fmt: skip


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path, name, line, reason, detail):
    path = write(tmp_path, name, GOOD + b"\n" + line + b"\n" + GOOD + line + b"\n")
    text = problem(path)
    assert text.startswith(f"{path}:3: {reason}")
    if detail is not None:
        assert text == f"{path}:3: {reason}{detail}"
    examples, skipped = read(path, on_bad_row="skip")
    assert [example.id for example in examples] == [f"{name}:1", f"{name}:4"]
    assert skipped == {reason: 2}


def test_good_lines_in_every_dress(tmp_path):
    """A byte-order mark, Windows line ends, blank lines, no end of line, unused columns."""
    data = b'\xef\xbb\xbf{"prompt": "p\xc3\xa9", "target": ["t", "u"]}\r\n\r\n  \n' + (
        b'{"target": "a\\nb", "n": 3, "prompt": "{x}"}'
    )
    examples, skipped = read(write(tmp_path, "rows.json", data))
    assert examples == [
        Example("rows.json:1", "pé", ("t", "u")),
        Example("rows.json:4", "{x}", ("a\nb",)),
    ]
    assert skipped == {}


def test_a_line_longer_than_memory_allows_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 64)
    longest = b'{"prompt": "p", "target": "' + b"t" * 34 + b'"}\n'
    assert len(longest) == 64
    path = write(tmp_path, "rows.jsonl", GOOD + b"x" * 1000 + b"\n" + longest + b" " + longest)
    assert problem(path).startswith(f"{path}:2: line longer than ")
    examples, skipped = read(path, on_bad_row="skip")
    assert [example.id for example in examples] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert [*skipped.values()] == [2]
    # A file without any line end at all.
    path = write(tmp_path, "array.jsonl", b"[" + b"0, " * 500 + b"0]")
    assert problem(path).startswith(f"{path}:1: line longer than ")


BAD_CSV = [
    (b"p\n", "wrong number of columns", ": 1, but the header has 2"),
    (b"p,t,u\n", "wrong number of columns", ": 3, but the header has 2"),
    (b'"p"q,t\n', "broken CSV", None),
    (b",t\n", f'field "prompt" {MISSING}', ""),
    (b'" ",t\n', f'field "prompt" {MISSING}', ""),
    (b"p,\xff\n", "invalid UTF-8", ": 0xff at byte 3 of the line"),
    (b"p,\0\n", "NUL byte", " at byte 3 of the line"),
    (b'"p\nq\nr",\xff\n', "invalid UTF-8", ": 0xff at byte 4 of the line"),
    (b'"p\n\xff\nr",t\n', "invalid UTF-8", None),
]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.tsv"])
@pytest.mark.parametrize(("row", "reason", "detail"), BAD_CSV)
def test_a_bad_csv_row_is_named_by_its_first_line(tmp_path, name, row, reason, detail):
    good = b'"two\nlines, one ""row""",t\r\n'
    data = b"prompt,target\n" + good + b"\n" + row + good + row
    if name == "rows.tsv":
        data = data.replace(b",", b"\t")
    path = write(tmp_path, name, data)
    text = problem(path)
    assert text.startswith(f"{path}:5: {reason}")
    if detail is not None:
        assert text == f"{path}:5: {reason}{detail}"
    examples, skipped = read(path, on_bad_row="skip")
    third = 5 + row.count(b"\n")
    assert [example.id for example in examples] == [f"{name}:2", f"{name}:{third}"]
    comma = "\t" if name == "rows.tsv" else ","
    assert examples[0].prompt == f'two\nlines{comma} one "row"'
    assert skipped == {reason: 2}


def test_an_open_quote_is_a_bad_row_and_not_the_rest_of_the_file(tmp_path):
    path = write(tmp_path, "rows.csv", b'prompt,target\np,t\n"p,t\np,t\n')
    assert problem(path).startswith(f"{path}:3: broken CSV: unexpected end of data; a field that")


OPEN = b'"Mr President , it is\tt3\n'  # a quote that is text, as in parallel corpora


@pytest.mark.parametrize("last", [b"p\tt\n", b'he said "it"\tt\n', b'it"\tt\n'])
@pytest.mark.parametrize("between", [0, 1, 300])
@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_a_row_that_opens_a_quote_takes_no_other_with_it(tmp_path, name, between, last):
    data = b"prompt\ttarget\np\tt2\n" + OPEN + b"p\tt\n" * between + last + b"p\tz\n"
    path = write(tmp_path, name, data)
    assert problem(path).startswith(f"{path}:3: open quote: a cell goes on ")
    examples, skipped = read(path, on_bad_row="skip")
    lines = [2, *range(4, 6 + between)]
    assert [example.id for example in examples] == [f"{name}:{line}" for line in lines]
    assert examples[-1].references == ("z",)
    assert skipped == {"open quote": 1}


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv"])
def test_a_cell_of_a_single_column_may_have_several_lines(tmp_path, name):
    path = write(tmp_path, name, b'prompt\n"one\ntwo"\nthree\n')
    found, skipped = read(path, Columns(Template("{prompt}")))
    assert [example.prompt for example in found] == ["one\ntwo", "three"]
    assert not skipped


def test_many_open_quotes_are_one_bad_row_each(tmp_path):
    path = write(tmp_path, "rows.csv", b"prompt,target\n" + b'"p,t\np,t\n' * 50)
    examples, skipped = read(path, on_bad_row="skip")
    assert skipped == {"broken CSV": 50}
    assert [example.id for example in examples] == [f"rows.csv:{n}" for n in range(3, 102, 2)]


def test_a_field_may_be_longer_than_the_csv_modules_limit(tmp_path):
    text = "x" * (csv.field_size_limit() + 1 if csv.field_size_limit() < 2**20 else 200_000)
    path = write(tmp_path, "rows.csv", f"prompt,target\n{text},t\n".encode())
    assert read(path)[0][0].prompt == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "rows.jsonl: empty: no rows"),
        (b"\n \n", "rows.jsonl: empty: no rows"),
        (b"", "rows.csv: empty; a CSV file opens with the names of its columns"),
        (b"\n\n", "rows.csv: empty; a CSV file opens"),
        (b"\nprompt,target,prompt\n", "rows.csv:2: the header names 'prompt' twice"),
        (b"prompt,,target\n", "rows.csv:1: the header has a column without a name"),
        (b"prompt,\xff\n", "rows.csv:1: the header has a fault: invalid UTF-8"),
        (b'prompt,"target\n', "rows.csv:1: the header is broken CSV"),
        (b"prompt,target\n\n", "rows.csv: empty: no rows"),
        (b"prompt,target\n,\n,\n", "rows.csv: empty: all 2 rows are bad, the first: "),
    ],
)
def test_a_file_that_has_no_rows(tmp_path, data, message):
    path = write(tmp_path, message.partition(":")[0], data)
    with pytest.raises(DataError) as caught:
        read(path, on_bad_row="skip")
    assert message in str(caught.value)


def test_a_csv_file_without_the_column_is_refused_before_its_rows(tmp_path):
    path = write(tmp_path, "rows.csv", b"question,target\nbad\n")
    with pytest.raises(ConfigError, match=r"rows.csv: no column 'prompt'; columns: 'question'"):
        read(path, on_bad_row="skip")


@pytest.mark.parametrize(
    ("name", "header", "mark"),
    [("rows.csv", "prompt;target", "';'"), ("rows.csv", "target\tprompt", r"'\t'"),
     ("rows.tsv", "prompt,target", "','")],
)  # fmt: skip
def test_another_delimiter_is_named(tmp_path, name, header, mark):
    path = write(tmp_path, name, f"{header}\nbad\n".encode())
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: no column 'prompt'; the only column is {header!r}, so the delimiter looks like "
        f"{mark}; write commas in a .csv file and tabs in a .tsv file"
    )


@pytest.mark.parametrize(
    ("others", "remedy"),
    [
        ([b'{"q": "p"}\n', b"{\n"], "none of the first 2 rows has it; use one that they have"),
        ([b'{"q": "p"}\n', GOOD], "mend the row, or leave bad rows out with task.on_bad_row=skip"),
        ([b"{\n"], "mend the row, or leave bad rows out with task.on_bad_row=skip"),
    ],
)
def test_skipping_is_no_remedy_for_a_column_that_no_row_has(tmp_path, others, remedy):
    path = write(tmp_path, "rows.jsonl", b'{"promt": "p"}\n' + b"".join(others))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}:1: no field \"prompt\"; columns: 'promt'; did you mean 'promt'? {remedy}"
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_a_damaged_gzip_file_is_an_error_whatever_is_done_with_bad_rows(tmp_path, damage):
    data = gzip.compress(GOOD * 2000)
    damaged = {"cut": data[:-20], "flipped": data[:-6] + b"\0\0" + data[-4:], "plain": GOOD}
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"rows.jsonl.gz:\d+: damaged gzip file"):
        read(path, on_bad_row="skip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.jsonl", "gone.jsonl: no such file"),
        ("folder/gone.csv.gz", "folder/gone.csv.gz: no such file"),
        ("a/b/c/gone", "a/b/c/gone: no such file or folder"),
        ("empty", "an empty folder; name a file (.jsonl, "),
        ("rows.xlsx", "cannot tell what is in it; name it .jsonl, "),
        ("rows.parquet", "rows.parquet: cannot be read as Parquet: "),
        ("gone.parquet", "gone.parquet: no such file"),
    ],
)
def test_what_is_no_source_is_an_error(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path, "rows.parquet", b"PAR1")
    write(tmp_path, "rows.xlsx", b"PK")
    with pytest.raises(DataError, match=re.escape(message)):
        open_source(text, "train")


def test_ids_come_from_their_column_and_are_unique(tmp_path):
    columns = Columns(Template("{prompt}"), id="key")
    rows = [{"prompt": "p", "key": key} for key in ("a", 7, "7", "b", "a")]
    path = write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert problem(path, columns) == f"{path}:3: id given twice: '7'"
    examples, skipped = read(path, columns, on_bad_row="skip")
    assert [example.id for example in examples] == ["a", "7", "b"]
    assert skipped == {"id given twice": 2}
    path = write(tmp_path, "rows.jsonl", b'{"prompt": "p", "key": true}\n')
    assert problem(path, columns) == f'{path}:1: field "key" is true or false, not text'


def example(columns, **row):
    _, (only,) = columns.examples(row, "id")
    return only


def test_several_target_columns_are_several_references():
    columns = Columns(Template("{prompt}"), targets=("a", "b"))
    assert example(columns, prompt="p", a="1", b=["2", "3"]).references == ("1", "2", "3")
    with pytest.raises(RowError, match='no field "b"'):
        example(columns, prompt="p", a="1")


def test_of_several_target_columns_some_may_be_null():
    columns = Columns(Template("{prompt}"), targets=("a", "b"))
    assert example(columns, prompt="p", a=None, b="2").references == ("2",)
    assert example(columns, prompt="p", a="1", b=None).references == ("1",)
    with pytest.raises(RowError, match='all of the fields "a", "b" are null or empty cells'):
        example(columns, prompt="p", a=None, b=None)
    with pytest.raises(RowError, match='field "b" is empty'):
        example(columns, prompt="p", a="1", b="")
    columns = replace(columns, optional_target=True)
    assert (columns.required(), columns.used()) == (("prompt",), ("prompt", "a", "b"))
    assert example(columns, prompt="p", a=None).references == ()
    with pytest.raises(RowError, match='field "b" is empty'):
        example(columns, prompt="p", b="")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_an_empty_cell_is_missing(tmp_path, delimiter):
    name = "rows.csv" if delimiter == "," else "rows.tsv.gz"
    lines = ["prompt,a,b,id", "p,1,2,x", "q,,2,", 'r,1,"",z', "s, ,,"]
    path = write(tmp_path, name, "\n".join(lines).replace(",", delimiter).encode() + b"\n")
    columns = Columns(
        Template("{prompt}"), targets=("a", "b"), optional_target=True, id="id", optional_id=True
    )
    examples, _ = read(path, columns)
    assert [e.references for e in examples] == [("1", "2"), ("2",), ("1",), ()]
    assert [e.id for e in examples] == ["x", f"{name}:3", "z", f"{name}:5"]
    message = 'all of the fields "a", "b" are null or empty cells'
    assert problem(path, replace(columns, optional_target=False)) == f"{path}:5: {message}"
    one = replace(columns, targets=("a",), optional_target=False)
    assert problem(path, one) == f'{path}:3: field "a" {MISSING}'


@pytest.mark.parametrize("metric", ["answer_accuracy", "gsm8k_accuracy"])
def test_a_reference_without_a_number_is_named_where_answers_are_compared(tmp_path, metric):
    lines = (
        b'{"prompt": "p", "target": "Steps.\\n#### 1,800"}\n'
        b'{"prompt": "p", "target": ["18", "#### 18 or 20"]}\n'
    )
    path = write(tmp_path, "rows.jsonl", lines)
    columns = replace(PLAIN, metrics=("bleu", metric))
    assert problem(path, columns).startswith(f"{path}:2: a reference has no answer for {metric}:")
    examples, skipped = read(path, columns, on_bad_row="skip")
    assert ([e.id for e in examples], sum(skipped.values())) == (["rows.jsonl:1"], 1)
    assert len(read(path, replace(PLAIN, metrics=("bleu",)))[0]) == 2


USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}


def test_a_chat_is_a_prompt_and_its_last_reply_the_reference():
    columns = Columns(None, messages="chat")
    assert example(columns, chat=[USER, REPLY]) == Example("id", "", ("hello",), (USER,))
    assert example(columns, chat=[USER, REPLY, USER]).messages == (USER, REPLY, USER)
    assert example(columns, chat=[{**USER, "name": None}]) == Example("id", "", (), (USER,))
    columns = Columns(None, messages="chat", targets=("t",))
    assert example(columns, chat=[USER], t="yes") == Example("id", "", ("yes",), (USER,))
    with pytest.raises(RowError, match="ends with the assistant's message"):
        example(columns, chat=[USER, REPLY], t="yes")
    columns = Columns(None, messages="chat", metrics=("answer_accuracy",))
    with pytest.raises(RowError, match="no answer for answer_accuracy: 'hello'"):
        example(columns, chat=[USER, REPLY])


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (None, 'field "chat" is null'),
        ("hi", 'field "chat" is text, not a list of messages'),
        ({}, 'field "chat" is an object, not a list of messages'),
        ([], 'field "chat" has no message to answer'),
        ([REPLY], 'field "chat" has no message to answer'),
        (["hi"], 'a message of field "chat" is not an object'),
        ([{"role": "user"}], 'the content of a message of field "chat" is null'),
        ([{"content": "hi"}], 'the role of a message of field "chat" is null'),
        ([{"role": "user", "content": ["hi"]}], "is a list, not text"),
        ([{"role": "user", "content": ""}], "is empty"),
        ([{**USER, "tool": "x"}], 'a message of field "chat" has the key "tool"'),
    ],
)
def test_a_bad_chat(chat, message):
    with pytest.raises(RowError) as caught:
        example(Columns(None, messages="chat"), chat=chat)
    assert message in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(["prompt", "target", "chat", "other"]), json_values),
    st.sampled_from(
        [
            PLAIN,
            Columns(Template("{prompt} {other}"), targets=("target",), optional_target=True),
            Columns(None, messages="chat", id="other"),
        ]
    ),
)
def test_every_row_is_an_example_of_clean_text_or_a_row_error(row, columns):
    try:
        _, (example,) = columns.examples(row, "id")
    except RowError:
        return
    contents = [message["content"] for message in example.messages]
    for text in (example.prompt, *example.references, *contents):
        assert "\0" not in text
        text.encode()
    assert example.prompt.strip() or all(content.strip() for content in contents)
    assert all(reference.strip() for reference in example.references)


clean = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)


@given(rows=st.lists(st.tuples(clean, clean), min_size=1, max_size=6), compressed=st.booleans())
def test_what_the_csv_module_writes_is_read_back_with_its_lines(tmp_path_factory, rows, compressed):
    text = io.StringIO()
    # `newline` is "" as the csv module asks, so "\r" and "\n" in a field stay what they are.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines = []
    for row in [("prompt", "target"), *rows]:
        lines.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    name = "rows.csv.gz" if compressed else "rows.csv"
    path = write(tmp_path_factory.mktemp("csv"), name, text.getvalue().encode())
    assert read(path)[0] == [
        Example(f"{name}:{line}", prompt, (target,))
        for line, (prompt, target) in zip(lines[1:], rows, strict=True)
    ]


@given(rows=st.lists(st.tuples(clean, clean), min_size=1, max_size=6), ascii_only=st.booleans())
def test_what_the_json_module_writes_is_read_back(tmp_path_factory, rows, ascii_only):
    text = "".join(
        json.dumps({"prompt": prompt, "target": target}, ensure_ascii=ascii_only) + "\n"
        for prompt, target in rows
    )
    path = write(tmp_path_factory.mktemp("jsonl"), "rows.jsonl", text.encode())
    assert [(e.prompt, *e.references) for e in read(path)[0]] == rows


@given(st.binary(max_size=80), st.sampled_from(["rows.jsonl", "rows.csv", "rows.tsv"]))
def test_any_bytes_are_examples_or_a_data_error(tmp_path_factory, data, name):
    header = b"prompt,target\n".replace(b",", b"\t" if name == "rows.tsv" else b",")
    data = data if name == "rows.jsonl" else header + data
    path = write(tmp_path_factory.mktemp("bytes"), name, data)
    try:
        examples, _ = read(path, on_bad_row="skip")
    except DataError:
        return
    assert examples


def test_the_position_ends_at_the_size_of_the_file(tmp_path):
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        path = write(tmp_path, name, GOOD * 10)
        source = FileSource(path)
        assert source.position() == (0, path.stat().st_size)
        assert len(list(source.rows(["prompt"]))) == 10
        assert source.position() == (path.stat().st_size, path.stat().st_size)
