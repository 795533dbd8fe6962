"""Files, functions and signatures that a reader can hold in mind, and nothing said twice."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import brim

SOURCE = Path(brim.__file__).parent
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}
# A command's parameters are its options.
COMMANDS = {"cli/analyze.py", "cli/sweep.py"}
SHARED_LINES = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def num_parameters(function: Function) -> int:
    arguments = function.args
    several = [arguments.vararg, arguments.kwarg]
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len(named) + sum(one is not None for one in several)


@pytest.mark.parametrize("name", FILES)
def test_files_functions_and_signatures_are_short(name):
    text = FILES[name].read_text(encoding="utf-8")
    num_lines = text.count("\n")
    assert num_lines <= 400
    for function in functions(text):
        assert function.end_lineno - function.lineno < 70, function.name
        public = function.name == "__init__" or not function.name.startswith("_")
        if public and name not in COMMANDS:
            assert num_parameters(function) <= 10, function.name


def code_of(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is neither blank nor a docstring's."""
    prose = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and number not in prose:
            yield number, line.strip()


def repeated(texts: dict[str, str], length: int) -> list[list[str]]:
    """Places, as `file:line`, where as many lines of code are the same."""
    places = defaultdict(list)
    for name, text in texts.items():
        lines = list(code_of(text))
        for start in range(len(lines) - length + 1):
            window = lines[start : start + length]
            places[tuple(line for _, line in window)].append(f"{name}:{window[0][0]}")
    return [found for found in places.values() if len(found) > 1]


def test_no_two_places_share_ten_lines():
    texts = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
    assert repeated(texts, SHARED_LINES) == []


def test_lines_that_are_shared_are_found_wherever_they_are_indented():
    block = "".join(f"a{i} = f({i})\n" for i in range(SHARED_LINES))
    inner = "def g():\n" + "".join(f"\n    {line}\n" for line in block.splitlines())
    assert repeated({"a": block, "b": f"# here\n{inner}"}, SHARED_LINES) == [["a:1", "b:4"]]
    assert repeated({"a": block, "b": inner.replace("a7", "b7")}, SHARED_LINES) == []
