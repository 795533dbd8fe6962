"""No public function or class is without a test, nor a public method.

A definition is covered if a test, an example or a command names it, or something covered does.
Names alone are compared: this finds what is forgotten, and says nothing of what is right.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import brim

SOURCE = Path(brim.__file__).parent
ROOT = Path(__file__).parents[2]

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
# `brim analyze` makes their names of its argument.
NAMED_BY_ARGUMENTS = {"analyze_theorem1", "analyze_variance"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in(*nodes: ast.AST) -> Iterator[str]:
    """Identifiers that are used, imported or keywords, and strings that are one."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name.rpartition(".")[2]
            case ast.Constant(value=str(name)) if name.isidentifier():
                yield name


def own_parts(definition: Definition) -> list[ast.AST]:
    """All of a definition but the methods that have to be covered by themselves."""
    if isinstance(definition, Function):
        return [definition]
    methods = [node for node in definition.body if isinstance(node, Function)]
    apart = {node for node in methods if not node.name.startswith("__") and not is_hook(node)}
    return [*definition.bases, *definition.decorator_list, *(set(definition.body) - apart)]


def is_exports(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"


def is_hook(method: Function) -> bool:
    """A method that pydantic calls."""
    return any("validator" in ast.dump(node) or "serializer" in ast.dump(node)
               for node in method.decorator_list)  # fmt: skip


def test_every_public_definition_is_reached_from_a_test_or_a_command():
    roots = [path for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*.py")]
    found = NAMED_BY_ARGUMENTS | {name for path in roots for name in names_in(parse(path))}
    definitions: dict[str, list[Definition]] = defaultdict(list)
    public = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = parse(path)
        for node in module.body:
            if isinstance(node, Definition):
                methods = node.body if isinstance(node, ast.ClassDef) else []
                for one in [node, *(m for m in methods if isinstance(m, Function))]:
                    definitions[one.name].append(one)
                    owner = "" if one is node else f"{node.name}."
                    if not (one.name.startswith("_") or node.name.startswith("_")):
                        public[f"{path.relative_to(SOURCE)}: {owner}{one.name}"] = one.name
            elif not isinstance(node, ast.Import | ast.ImportFrom) and not is_exports(node):
                found |= set(names_in(node))  # a registry
        if path.parent.name == "cli":
            found |= set(names_in(module))
    todo, seen = list(found), set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            for definition in definitions[name]:
                todo += names_in(*own_parts(definition))
    assert [place for place, name in public.items() if name not in seen] == []
