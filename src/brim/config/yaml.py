"""YAML 1.2 text to plain data that remembers the line of every key, and back.

PyYAML follows YAML 1.1, where `1e-5` is text, `no` is false, 010 is eight and the last of two equal
keys wins. Here `1e-5` is a number, only `true` and `false` are booleans, dates are text, and two
equal keys are an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from brim.errors import ConfigError

KeyPath = tuple[str | int, ...]

_TEXT = "tag:yaml.org,2002:str"
# The scalars of the core schema: tag -> (what an unquoted one looks like, how it is read).
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "tag:yaml.org,2002:null": (r"(~|null|Null|NULL|)\Z", lambda text: None),
    "tag:yaml.org,2002:bool": (
        r"(true|True|TRUE|false|False|FALSE)\Z",
        lambda text: text.lower() == "true",
    ),
    "tag:yaml.org,2002:int": (
        r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z",
        lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    ),
    "tag:yaml.org,2002:float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z",
        lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
    ),
    _TEXT: ("", str),
}


_QUOTED_OR_NULL = re.compile(
    r"""\s*('([^']|'')*'|"([^"\\]|\\.)*"|~|null|Null|NULL)\s*""", re.DOTALL
)

# What a document may hold once its aliases are written out, where a node counts as _NODE_SIZE
# characters: a few hundred bytes of aliases of aliases stand for gigabytes.
_MAX_SIZE, _NODE_SIZE = 5_000_000, 50
_MAX_DEPTH = 100


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (none of YAML 1.1's)


try:
    from yaml.cyaml import CParser  # type: ignore[attr-defined]
except ImportError:  # PyYAML without libyaml
    _FastLoader: Any = _Loader
else:

    class _FastLoader(Composer, CParser, SafeConstructor, Resolver):  # type: ignore[no-redef]
        """Events of libyaml, five times as fast; nodes of the loader above."""

        yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            Composer.__init__(self)
            Resolver.__init__(self)


class _Dumper(yaml.SafeDumper):
    """Keeps YAML 1.1's patterns too, and so quotes text that other readers would take for more."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Double quotes escape what PyYAML's other styles lose, such as the line break U+0085.
    return dumper.represent_scalar(_TEXT, text, style=None if text.isprintable() else '"')


for _tag, (_pattern, _) in _SCALARS.items():
    if _pattern:
        for _class in (_Loader, _Dumper):
            _class.add_implicit_resolver(_tag, re.compile(_pattern), None)
_Dumper.add_representer(str, _represent_text)


@dataclass
class Document:
    """Data as read, and where each part of it was written.

    Attributes:
        data: mappings, lists and scalars.
        origins: key path -> the place as errors call it, such as `recipe.yaml:12`; `()` is there.
    """

    data: Any
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Return the place of the key or, where it was not written, of the mapping around it."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]


def dotted(path: KeyPath) -> str:
    """Return a key path as users write it: `optim.lr`."""
    return ".".join(str(part) for part in path)


def parse(text: str, where: Callable[[int], str]) -> Document:
    """Read one YAML document; `where` is what errors call a line, given its number from 1.

    Raises:
        ConfigError: broken YAML, equal keys, tags beyond the core schema, nesting of more than 100
            levels, or aliases that stand for more than 5 MB.
    """
    document = Document(None, {(): where(1)})
    try:
        root = _compose(text)
        if root is not None:
            document.data = _Builder(where, document.origins).build(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where(mark.line + 1 if mark else 1)}: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where(line)}: the character U+{error.character:04X} is not allowed"
        ) from None
    except RecursionError:
        raise ConfigError(f"{where(1)}: nested too deeply") from None
    return document


def parse_value(text: str, place: str) -> Document:
    """Read one value of a command line: YAML, or the text as written where YAML sees only text.

    Comments, tags and anchors are text there too, unless the whole value is quoted.

    Raises:
        ConfigError: quoted text with an escape that is none.
    """
    if _QUOTED_OR_NULL.fullmatch(text):
        return parse(text, lambda line: place)
    try:
        value = parse(text, lambda line: place)
    except ConfigError:
        return Document(text, {(): place})
    if value.data is None or isinstance(value.data, str):
        value.data = text
    return value


@lru_cache(maxsize=8)  # runs of a sweep, and files that extend them, read the same file again
def _compose(text: str) -> yaml.Node | None:
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=_FastLoader)
    except yaml.YAMLError:  # PyYAML's own parser says better what is wrong
        root = yaml.compose(text, Loader=_Loader)
    return root


@dataclass
class _Builder:
    """Makes values of nodes, and puts the places of what is below them into `origins`."""

    where: Callable[[int], str]
    origins: dict[KeyPath, str]
    size: int = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        place = self.where(node.start_mark.line + 1)
        self.size += _NODE_SIZE + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.size > _MAX_SIZE:
            raise ConfigError(
                f"{place}: {dotted(path[:1])}: too large; write less, or fewer aliases of aliases"
            )
        if len(path) > _MAX_DEPTH:
            raise ConfigError(f"{place}: {dotted(path[:1])}: nested too deeply")
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.origins[(*path, i)] = self.where(item.start_mark.line + 1)
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        try:
            node.value.encode()  # "\ud800" makes text that cannot be written again
            return _SCALARS[node.tag][1](node.value)
        except (KeyError, ValueError):
            raise ConfigError(
                f"{place}: {dotted(path)}: "
                f"cannot read {node.value!r} as {node.tag.removeprefix('tag:yaml.org,2002:')}"
            ) from None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            place = self.where(key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{place}: a key must be a plain name")
            here = (*path, key.value)
            if key.value in mapping:
                raise ConfigError(
                    f"{place}: {dotted(here)}: given twice, first at {self.origins[here]}; "
                    "remove one"
                )
            self.origins[here] = place
            mapping[key.value] = self.build(value, here)
        return mapping


def dump(data: Any, *, flow: bool = False) -> str:
    """Return text that `parse` reads back as equal data; `flow` is the style of `{}` and `[]`."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
