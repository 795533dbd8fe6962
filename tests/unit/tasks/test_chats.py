"""Chats of several turns, with tools, as files and tables hold them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brim.errors import DataError
from brim.examples import Example
from brim.tasks import SPLITS, Files, describe
from brim.tasks.base import example_digest
from brim.tasks.cells import RowError
from brim.tasks.rows import Columns
from brim.tasks.templates import Template

CALL = {"id": "c1", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


CHAT = [
    say("system", "be short"),
    say("user", "1+2?"),
    say("assistant", None, tool_calls=[CALL]),
    say("tool", "3", tool_call_id="c1", name="add"),
    say("assistant", "three"),
    say("user", "and 4?"),
    say("assistant", "seven"),
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def examples(columns, **row):
    return columns.examples(row, "id")[1]


def test_each_reply_is_an_example_whose_messages_are_those_before_it():
    chats = Columns(None, messages="chat", turns="all")
    first, second = examples(chats, chat=CHAT)
    assert (first.id, first.references) == ("id#1", ("three",))
    assert (second.id, second.references) == ("id#2", ("seven",))
    assert second.messages[:4] == first.messages
    assert second.messages[4:] == (say("assistant", "three"), say("user", "and 4?"))
    # A call has no text of its own: it is read, and not learned.
    assert first.messages[2] == say("assistant", "", tool_calls=[CALL])
    assert first.messages[3] == CHAT[3]
    assert first.text.splitlines()[2:] == [f"assistant: {json.dumps([CALL])}", "tool: 3"]
    (last,) = examples(Columns(None, messages="chat"), chat=CHAT)
    assert last == Example("id", "", second.references, second.messages)


def test_an_open_end_is_a_turn_where_a_column_answers_it():
    chats = Columns(None, messages="chat", targets=("t",), turns="all")
    chat = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    assert [e.references for e in examples(chats, chat=chat, t="d")] == [("b",), ("d",)]
    assert [e.references for e in examples(chats, chat=chat)] == [("b",)]
    with pytest.raises(RowError, match='no field "t"'):
        examples(chats, chat=chat[:1])
    with pytest.raises(RowError, match="ends with the assistant's message"):
        examples(chats, chat=chat[:2], t="d")
    prompts = Columns(None, messages="chat", turns="all")
    assert [e.references for e in examples(prompts, chat=chat[:1])] == [()]


def test_a_chat_that_ends_with_its_target_needs_no_target_column():
    chats = Columns(None, messages="chat", targets=("t",))
    chat = [say("user", "a"), say("assistant", "b")]
    assert examples(chats, chat=chat) == [Example("id", "", ("b",), (chat[0],))]
    assert examples(chats, chat=chat, t=None)[0].references == ("b",)


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([say("user", "a"), say("assistant", "", tool_calls=[CALL])], "tool calls as replies"),
        ([say("user", "a"), say("assistant", "b", tool_calls=[CALL])], "tool calls as replies"),
        ([say("user", "a"), say("assistant", None)], "the content of a message"),
        ([say("user", "a"), say("assistant", None, tool_calls=[])], "the content of a message"),
        ([say("user", "a"), say("assistant", None, tool_calls=["x"])], "is not an object"),
        (
            [say("user", "a"), say("assistant", None, tool_calls="x")],
            "is text, not a list of calls",
        ),
        ([say("user", "a"), say("tool", "b", tool_call_id=3)], "the tool_call_id of a message"),
        ([say("user", "a", tool_calls=[{"a": "\ud800"}])], "is no JSON"),
        ([say("user", "a", tool_calls=[{"a": b"x"}])], "is no JSON"),
        ([say("user", "a", tool_calls=[{"a": float("nan")}])], "is no JSON"),
    ],
)
def test_a_bad_message_of_a_chat_with_tools(chat, reason):
    with pytest.raises(RowError, match=reason) as caught:
        examples(Columns(None, messages="chat"), chat=chat)
    assert "\n" not in str(caught.value)


def test_tools_are_a_list_or_that_as_text():
    chats = Columns(None, messages="chat", tools="tools")
    chat = [say("user", "a"), say("tool", "")]
    for tools in (TOOLS, json.dumps(TOOLS)):
        assert examples(chats, chat=chat, tools=tools)[0].tools == tuple(TOOLS)
    assert examples(chats, chat=chat, tools=None)[0].tools == ()
    for bad in ("{", "{}", 3, [3]):
        with pytest.raises(RowError, match='field "tools" is'):
            examples(chats, chat=chat, tools=bad)
    with pytest.raises(RowError, match='no field "tools"'):
        examples(chats, chat=chat)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_copies_hold_tools_and_calls_as_files_do(tmp_path, kind):
    chats = [CHAT, [say("user", f"q{3}"), say("assistant", "r")], CHAT[:5]]
    rows = [{"messages": chat, "tools": TOOLS if i else None} for i, chat in enumerate(chats)]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:  # which gives each message every key of any
        pq.write_table(pa.Table.from_pylist(rows), path)
    task = Files(test=str(path), messages_column="messages", tools_column="tools", turns="all")
    found = [task.load("test", cache_dir=cache) for cache in (None, tmp_path / "c", tmp_path / "c")]
    assert list(found[0]) == list(found[1]) == list(found[2])
    first = 0 if kind == "parquet" else 1
    assert [e.id for e in found[0]] == [
        f"rows.{kind}:{row + first}#{turn}" for row, turn in ((0, 1), (0, 2), (1, 1), (2, 1))
    ]
    assert [bool(e.tools) for e in found[0]] == [False, False, True, True]
    assert found[0][3].tools == tuple(TOOLS)
    assert found[0][0].messages[2]["tool_calls"] == [CALL]
    assert {describe(examples)["sha256"] for examples in found} == {example_digest(found[0])}
    place = f"{path}[1]" if kind == "parquet" else f"{path}:2"
    assert task.find("test", {found[0][2].id}) == {found[0][2].id: place}


def test_the_turns_of_a_chat_are_in_one_split(tmp_path):
    rows = [
        {
            "m": [
                say("user", f"q{i}"),
                say("assistant", "a"),
                say("user", "b"),
                say("assistant", "c"),
            ]
        }
        for i in range(100)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = Files(train=path, messages_column="m", turns="all", validation_fraction=0.4)
    openings = [{e.messages[0]["content"] for e in task.load(split)} for split in SPLITS]
    assert sum(map(len, openings)) == len(set().union(*openings)) == 100
    assert sum(len(task.load(split)) for split in SPLITS) == 200
    assert len(openings[1]) > 20


def test_evaluation_may_compare_a_chat_with_another_column(tmp_path):
    row = {"m": [say("user", "q"), say("assistant", "a")], "refs": ["r", "s"]}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    task = Files(train=path, test=path, messages_column="m", reference_column="refs",
                 validation_fraction=0)  # fmt: skip
    prompt = (say("user", "q"),)
    assert [
        (e.messages, e.references) for split in ("train", "test") for e in task.load(split)
    ] == [
        (prompt, ("a",)),
        (prompt, ("r", "s")),
    ]


def test_a_messages_column_takes_the_place_of_a_recipes_prompt(tmp_path):
    row = {"messages": [say("user", "q"), say("assistant", "a")]}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    for recipe in ({"prompt": "Say {question}"}, {"prompt_column": "q", "target_column": "answer"}):
        task = Files(test=path, messages_column="messages", **recipe)
        assert task.load("test")[0].references == ("a",)
    with pytest.raises(DataError, match=r'rows.jsonl:1: no field "messagse"'):
        Files(test=path, messages_column="messagse").load("test")


def test_old_rows_have_no_tools():
    columns = Columns(Template("{p}"))
    (plain,) = examples(columns, p="q")
    assert example_digest([plain]) == example_digest([Example("id", "q")])
    tooled = Example("id", "q", tools=tuple(TOOLS))
    assert example_digest([plain]) != example_digest([tooled])
