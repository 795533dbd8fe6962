"""Settings: YAML files and command-line overrides that become frozen, checked objects.

A settings class derives from `Config`; `load_config` reads a file into it and `dump_config` writes
the text that reads back as the same object. Whatever is wrong is a one-line `ConfigError` that
names the file and line, or the override, and the setting that was probably meant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from brim.config.messages import (
    COMMAND_LINE,
    Models,
    did_you_mean,
    explain,
    key_path,
    models_below,
    shown,
    value_at,
)
from brim.config.yaml import Document, KeyPath, dotted, dump, parse, parse_value
from brim.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)
_Search = Callable[[str], Path]

FROM_PYTHON = "from Python"

_VARIANTS = "variants"
_NOT_SET = object()


class Incidental:
    """Marks a setting that cannot change results."""


class Config(BaseModel):
    """Base of every group of settings: frozen, a docstring a field; no unknown keys, no inf or nan.

    Where one of several classes may stand, each has a field `name: Literal[...]` of its own.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        validate_by_name=True,  # from Python, a key that is a keyword: `lambda_`
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @classmethod
    def expand(cls, document: Document) -> None:
        """Write out, in place, what a settings file may say in a shorter way."""

    def __hash__(self) -> int:  # pydantic's own fails where a value is a mapping
        return hash(config_hash(self))


def load_config(
    cls: type[ConfigT],
    source: Path | None,
    overrides: Sequence[str] | Document = (),
    *,
    search: _Search | None = None,
) -> ConfigT:
    """Read settings from a YAML file and put the overrides on top.

    `extends: other.yaml` at the top of a file starts from another file, found from the folder of
    the first. Whatever comes later wins: mappings are merged key by key, anything else (lists too)
    is replaced. A mapping is replaced whole where its `name` chooses a class and changes, for
    another method has other settings. Types are strict: `"1"` is no number and `true` is not 1.

    `variants: {size: {small: {…}, large: {…}}}` at the top of a file gives names to settings that
    belong together; the override `size=small` puts them on top of the file, below all others.

    Args:
        cls: the class of the settings.
        source: the YAML file; None where the overrides say all.
        overrides: `key.sub=value` texts, later ones winning. The value is YAML (`1e-5`, `[1, 2]`,
            `null`); where the setting is text, it is the text as written, so that a prompt such as
            `{question}` needs no quotes. Or values of Python's, as `given_settings` takes them.
        search: finds the file of an extended name that does not end in .yaml or .yml.

    Raises:
        ConfigError: a file, key or value that cannot be used.
    """
    place, written = COMMAND_LINE.rstrip(": "), dict[KeyPath, str]()
    if isinstance(overrides, Document):
        place, commands = FROM_PYTHON, overrides
    else:
        commands, written = _read_overrides(overrides)
    base = Document({}, {(): place}) if source is None else read_extended(source, [cls], search)
    expand = cls.expand if issubclass(cls, Config) else lambda document: None
    expand(base)  # so that single keys can be put on top of it
    document = _merge(_vary(base, commands, cls), commands, [cls])
    expand(document)
    while True:
        try:
            # Through JSON: strict types there still take a list for a tuple and text for a path.
            return cls.model_validate_json(json.dumps(document.data), strict=True)
        except ValidationError as error:
            if not _restore_text(document.data, written, error):
                raise ConfigError(explain(cls, document, error)) from None


def given_settings(*settings: Mapping[str, Any]) -> Document:
    """Return settings from Python as `load_config` takes them for overrides.

    Args:
        settings: by key, such as `optim.lr`; later ones win, as files do. A value is a mapping of
            such keys, an object of settings, a path, or what JSON has.

    Raises:
        ConfigError: a key that is no text, or another value.
    """
    found = Document({})
    for path, value in (item for group in settings for item in _leaves(group)):
        data: Any = value
        for part in reversed(path):
            data = {part: data}
        origins = {path[:i]: FROM_PYTHON for i in range(1, len(path) + 1)}
        # Without classes: a name and what belongs to it may come in either order.
        found = _merge(found, Document(data, origins), [])
    return found


def _leaves(group: Mapping[str, Any], parent: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Key paths of a mapping from Python, each with its value as JSON has it."""
    for key, value in group.items():
        if not (isinstance(key, str) and all(key.split("."))):
            raise ConfigError(f"{FROM_PYTHON}: {key!r}: write a setting as key.sub")
        path = (*parent, *key.split("."))
        value = _plain(value, path)
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _plain(value: Any, path: KeyPath) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        items = (_plain(item, (*path, i)) for i, item in enumerate(value))
        return [given_settings(item).data if isinstance(item, dict) else item for item in items]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Real):  # of numpy
        return int(value) if isinstance(value, Integral) else float(value)
    wrong = f"{type(value).__name__} is no type of a setting; give text, numbers, lists or mappings"
    raise ConfigError(f"{FROM_PYTHON}: {dotted(path)}: {wrong}")


def make_config(cls: type[ConfigT], data: Mapping[str, Any], place: str) -> ConfigT:
    """Make settings of values that stand in no file; errors call their origin `place`.

    Raises:
        ConfigError: a key or value that cannot be used.
    """
    try:
        return cls.model_validate(data, strict=True)
    except ValidationError as error:
        document = Document(dict(data), {(): place})
        raise ConfigError(explain(cls, document, error)) from None


def read_mapping(path: Path) -> Document:
    """Read a YAML file that holds a mapping; an empty one holds none of its keys.

    Raises:
        ConfigError: the file cannot be read, is not YAML in UTF-8, or holds something else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: {reason}; check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8; save the file as UTF-8 text") from None
    document = parse(text, lambda line: f"{path}:{line}")
    document.data = {} if document.data is None else document.data
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}:1: write the file as `key: value`")
    document.origins[()] = str(path)
    return document


def dump_config(config: BaseModel) -> str:
    """Return YAML that `load_config` reads back as an equal object; fields in declared order."""
    return dump(config.model_dump(mode="json"))


def config_hash(value: BaseModel | Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of settings, the same whatever the order of their keys.

    Raises:
        TypeError: a mapping that holds something other than settings, paths and JSON values.
    """

    def plain(item: object) -> Any:
        if isinstance(item, BaseModel):
            return item.model_dump(mode="json")
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"a {type(item).__name__} has no hash that lasts")

    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


def without_incidental(cls: type[BaseModel], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain settings of a class without those that are `Incidental`, in groups below too."""

    def kept(name: str, value: Any) -> Any:
        field = cls.model_fields.get(name)
        group = field.annotation if field else None
        if isinstance(value, Mapping) and isinstance(group, type) and issubclass(group, BaseModel):
            return without_incidental(group, value)
        return value

    fields = cls.model_fields.items()
    left_out = {name for name, field in fields if Incidental in field.metadata}
    return {name: kept(name, value) for name, value in settings.items() if name not in left_out}


def describe_changes(before: Any, after: Any, path: KeyPath = ()) -> list[str]:
    """Return what differs between two trees of settings, such as `objective.k: 2 → 4`, in order.

    Of two mappings with different `name`s only that is said: other classes have other settings.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        keys = ["name"] if before.get("name") != after.get("name") else before | after
        return [
            change
            for key in keys
            for change in describe_changes(
                before.get(key, _NOT_SET), after.get(key, _NOT_SET), (*path, key)
            )
        ]
    if before == after:
        return []
    texts = ("not set" if value is _NOT_SET else shown(value) for value in (before, after))
    return [f"{dotted(path)}: {' → '.join(texts)}"]


# Reading


def read_extended(
    path: Path, models: Models, search: _Search | None, chain: tuple[Path, ...] = ()
) -> Document:
    """Read the settings of a file on top of those that it extends, not yet checked.

    Raises:
        ConfigError: one of the files cannot be read, or extends itself.
    """
    document = read_mapping(path)
    if "extends" not in document.data:
        return document

    origin = document.origin(("extends",))
    name = document.data.pop("extends")
    if not isinstance(name, str):
        raise ConfigError(f"{origin}: extends: {shown(name)} must be the name of one file")
    chain = (*chain, path.resolve())
    try:
        if search is None or name.endswith((".yaml", ".yml")):
            base = path.parent / name
        else:
            base = search(name)
        if base.resolve() in chain:
            raise ConfigError(f"{base}: extends this file in turn; remove one `extends`")
        return _merge(read_extended(base, models, search, chain), document, models)
    except ConfigError as error:
        raise ConfigError(f"{origin}: extends: {error}") from None


def _vary(document: Document, commands: Document, cls: type[BaseModel]) -> Document:
    """The document with those of its variants on top that the overrides choose."""
    origin, variants = document.origin((_VARIANTS,)), document.data.pop(_VARIANTS, None)
    for name, choices in _check_variants({} if variants is None else variants, cls, origin):
        if name not in commands.data:
            continue
        place, value = commands.origin((name,)), commands.data.pop(name)
        # As written, or what it means: 1e-4 is 0.0001, and 1 is not true.
        read = {json.dumps(parse_value(key, place).data): key for key in choices}
        choice = value if value in list(choices) else read.get(json.dumps(value))
        if choice is None:
            hint = did_you_mean(str(value), choices)
            raise ConfigError(f"{place}: {name} is one of {', '.join(choices)}{hint}")
        path = (_VARIANTS, name, choice)
        origins = {key[3:]: at for key, at in document.origins.items() if key[:3] == path}
        document = _merge(document, Document(choices[choice], origins), [cls])
    return document


def _check_variants(
    variants: Any, cls: type[BaseModel], origin: str
) -> list[tuple[str, dict[Any, Any]]]:
    """Names with their choices, each a mapping of settings."""
    named: Any = variants.items() if isinstance(variants, dict) else [("", 0)]
    kept = [(name, choices) for name, choices in named if choices is not None]  # null removes one
    for name, choices in kept:
        blocks = choices.values() if isinstance(choices, dict) else [None]
        if not all(isinstance(block, dict) for block in blocks):
            raise ConfigError(f"{origin}: variants: write `name: {{value: {{settings}}}}`")
        if name in cls.model_fields:
            raise ConfigError(f"{origin}: variants: {name} is a setting; choose another name")
    return kept


def _read_overrides(overrides: Sequence[str]) -> tuple[Document, dict[KeyPath, str]]:
    """The overrides as settings, and the values among them that YAML did not read as text."""
    commands = Document({})
    written: dict[KeyPath, str] = {}
    for override in overrides:
        origin = f"{COMMAND_LINE}{override}".encode(errors="backslashreplace").decode()
        key, equals, text = override.partition("=")
        path: KeyPath = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(f"{origin}: write a setting as key.sub=value")
        if any("\ud800" <= character <= "\udfff" for character in override):
            raise ConfigError(f"{origin}: not UTF-8 text")
        for i in range(1, len(path)):
            if isinstance(_given(commands.data, path[:i]), list):
                above = dotted(path[:i])
                raise ConfigError(
                    f"{origin}: {above} is a list, given before; say it in the list: "
                    f"{above}=[{{…, {dotted(path[i:])}: {text}}}, …]"
                )
        value = parse_value(text, origin)
        written.pop(path, None)
        if not (value.data is None or isinstance(value.data, str)):
            written[path] = text
        for part in reversed(path):
            value.data = {part: value.data}
        value.origins = {path + below: place for below, place in value.origins.items()}
        value.origins |= {path[:i]: origin for i in range(1, len(path))}
        # Without classes: `k=4 name=brim` must mean the same in either order.
        commands = _merge(commands, value, [])
    return commands, written


def _given(data: Any, path: KeyPath) -> Any:
    """What is at a path of nested mappings; None where there is none."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _merge(base: Document, top: Document, models: Models) -> Document:
    """`top` over `base`; `models` are the classes that the settings are for."""
    origins = base.origins | top.origins

    def merged(below: Any, above: Any, models: Models, path: KeyPath = ()) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return above
        if len(models) > 1 and "name" in above and above["name"] != below.get("name"):
            return above
        if path:
            origins[path] = base.origin(path)
        both = below | above
        for key in [key for key in below if key in above]:
            inner = models_below(models, both, key)
            both[key] = merged(below[key], above[key], inner, (*path, key))
        return both

    return Document(merged(base.data, top.data, models), origins)


def _restore_text(data: Any, written: dict[KeyPath, str], error: ValidationError) -> bool:
    """Put overrides back as they were written where text is wanted; False where none is left."""
    restored = False
    for detail in error.errors():
        path = key_path(data, detail)
        if detail["type"] == "string_type" and path in written:
            value_at(data, path[:-1])[path[-1]] = written.pop(path)
            restored = True
    return restored
