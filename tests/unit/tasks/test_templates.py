"""Prompt templates: they say what `str.format` says of plain names, and can do nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import ConfigError
from brim.tasks.templates import Template

literals = st.text(max_size=20)
names = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True)


@given(
    pieces=st.lists(st.tuples(literals, names), min_size=1, max_size=5),
    end=literals,
    data=st.data(),
)
def test_plain_names_render_as_str_format_renders_them(pieces, end, data):
    def escape(text):
        return text.replace("{", "{{").replace("}", "}}")

    text = "".join(escape(literal) + "{" + name + "}" for literal, name in pieces) + escape(end)
    # Any text may stand in a row: its braces are not looked at.
    row = {name: data.draw(st.text(alphabet="{}ab\\$%é", max_size=8)) for _, name in pieces}
    template = Template(text)
    assert template.render(row) == text.format(**row)
    assert template.render(row) == "".join(a + row[name] for a, name in pieces) + end
    assert template.fields == tuple(dict.fromkeys(name for _, name in pieces))


@given(st.text(alphabet="{}a. ", max_size=12))
def test_every_text_is_a_template_or_a_config_error(text):
    try:
        template = Template(text)
    except ConfigError:
        return
    row = dict.fromkeys(template.fields, "x")
    assert template.render(row).count("x") == len(template._names) >= 1


@pytest.mark.parametrize("name", ["a.__class__", "a[0]", "a!r", "a:>10", "0", "my column", "a-b"])
def test_a_name_is_a_column_and_nothing_else(name):
    template = Template("say {" + name + "}")
    assert template.fields == (name,)
    assert template.render({name: "hi", "a": "wrong"}) == "say hi"
    with pytest.raises(ConfigError, match="no column"):
        template.check(["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a } {b}", r"single '}' at character 3; write '}}' for a brace"),
        ("{b} {", r"single '{' at character 5; write '{{' for a brace"),
        ("{b} {c", r"single '{' at character 5"),
        ("{{b}", r"single '}' at character 4"),
        ("{}", r"has no name"),
        ("translate this", r"names no column"),
        ("{{b}}", r"names no column"),
    ],
)
def test_a_template_that_cannot_be_used_says_where(text, message):
    with pytest.raises(ConfigError, match=message):
        Template(text)


def test_an_unknown_column_names_the_columns_and_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        Template("Q: {qestion}").check(["id", "question", "answer"])
    assert str(caught.value) == (
        "prompt template 'Q: {qestion}': no column 'qestion'; "
        "columns: 'id', 'question', 'answer'; did you mean 'question'?"
    )


@given(pieces=st.lists(st.tuples(literals, names), min_size=1, max_size=5), end=literals)
def test_the_longest_text_of_a_row_is_where_it_says(pieces, end):
    def escape(text):
        return text.replace("{", "{{").replace("}", "}}")

    text = "".join(escape(literal) + "{" + name + "}" for literal, name in pieces) + escape(end)
    row = {name: f"{name}{{}}" * (1 + len(name)) for _, name in pieces}
    template = Template(text)
    span = template.longest(row)
    if len(pieces) == 1 and pieces[0][0] == end == "":
        assert span is None
        return
    start, stop = span
    longest = max(map(len, row.values()))
    first = next(i for i, (_, name) in enumerate(pieces) if len(row[name]) == longest)
    assert template.render(row)[start:stop] == row[pieces[first][1]]
    before = [literal + row[name] for literal, name in pieces[:first]]
    assert template.render(row)[:start] == "".join(before) + pieces[first][0]
