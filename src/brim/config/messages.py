"""What is wrong with settings, on one line: where it was written, and what was probably meant.

pydantic finds the mistakes; here its locations become key paths, its error types a user's words,
and the classes of the settings tell which key comes nearest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from brim.config.yaml import Document, KeyPath, dotted

Models = Sequence[type[BaseModel]]

COMMAND_LINE = "command line: "

# The keys that say which class of a union is meant.
_TAGS = ("name", "family")

# What a value must be, by pydantic's type of the error; a name in braces is in its context.
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "string_too_short": "at least {min_length} characters long",
    "string_type": "text",
    "too_long": "at most {max_length} long",
    "too_short": "at least {min_length} long",
    "tuple_type": "a list",
}


def explain(cls: type[BaseModel], document: Document, error: ValidationError) -> str:
    """Return one line on the first mistake, its place and its key, and the number of others.

    Unknown keys come first, for they explain missing ones.
    """
    mistakes: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden"):
        mistakes.setdefault(key_path(document.data, detail), []).append(detail)
    # Of a union of text and settings, what is wrong inside the settings says more.
    parents = {path[:i] for path in mistakes for i in range(len(path))}
    path, *others = (path for path in mistakes if path not in parents)
    problem = _problem(cls, document.data, path, mistakes[path])
    if mistakes[path][0]["type"] == "value_error":
        # What is wrong between settings begins with the one to change: `optim.optimizer: …`.
        key, colon, rest = problem.partition(": ")
        below = tuple(key.split("."))
        models = _models_at(cls, document.data, path)
        if colon and any(below[0] in keys_of(model) for model in models):
            path, problem = (*path, *below), rest
    place = document.origin(path)
    if path and not place.startswith(f"{COMMAND_LINE}{dotted(path)}="):
        place = f"{place}: {dotted(path)}"
    more = f" (and {len(others)} more)" if others else ""
    return " ".join(f"{place}: {problem}{more}".split())


def _problem(cls: type[BaseModel], data: Any, path: KeyPath, details: list[ErrorDetails]) -> str:
    """What is wrong with one setting; a union complains once for each of its types."""
    kind, context = details[0]["type"], details[0].get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key; {_suggest_key(cls, data, path)}"
    if kind == "missing":
        return "missing; add it"
    if kind == "union_tag_not_found":
        names = [name for model in _models_at(cls, data, path[:-1]) for name in _names(model)]
        return f"missing; add one of {', '.join(names)}"
    if kind == "value_error":
        return str(context["error"])
    value = value_at(data, path)
    choices = re.findall("'([^']*)'", context.get("expected", context.get("expected_tags", "")))
    if len(details) == 1 and choices:
        return f"{shown(value)} is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
    wanted = (
        _WANTED.get(detail["type"], "usable ({msg})").format(**detail, **detail.get("ctx", {}))
        for detail in details
    )
    return f"{shown(value)} must be {' or '.join(dict.fromkeys(wanted))}"


def shown(value: Any) -> str:
    """Return a value as errors quote it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(written: object, known: Iterable[str]) -> str:
    """Return `; did you mean …?` with the nearest of the known texts; nothing if none is near."""
    near = [*get_close_matches(str(written), known, 1)]
    near += get_close_matches(str(written).lower(), known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _suggest_key(cls: type[BaseModel], data: Any, path: KeyPath) -> str:
    """Whose key it is, or the key of the same mapping or of any other that was probably meant."""
    parent, key = path[:-1], str(path[-1])
    models = _models_at(cls, data, parent)
    owners = [model for model in models if key in keys_of(model) and _names(model)]
    if owners:
        names = " or ".join(name for model in owners for name in _names(model))
        return f"it belongs to {dotted((*parent, _tag(owners[0])))} {names}"
    here = {
        name: (*parent, name)
        for model in _with_name(models, value_at(data, parent))
        for name in keys_of(model)
    }
    anywhere: dict[str, KeyPath] = {}
    for known in sorted(_all_keys(cls), key=len):
        anywhere.setdefault(str(known[-1]), known)
    if parent and isinstance(parent[-1], int):  # an item of a list has keys of its own only
        anywhere = {}
    if key in anywhere:
        return f"did you mean {dotted(anywhere[key])}?"
    initials = "".join(word[:1] for word in key.split("_"))  # learning_rate is lr
    for keys in (here, anywhere):
        for near in get_close_matches(key, keys, 1) or {initials} & keys.keys():
            return f"did you mean {dotted(keys[near])}?"
    return f"the keys here are {', '.join(here)}"


def key_path(data: Any, detail: ErrorDetails) -> KeyPath:
    """Return an error's key path: pydantic's location without the union members that it names."""
    path: KeyPath = ()
    for i, part in enumerate(detail["loc"]):
        keys = range(len(data)) if isinstance(data, list) else data
        if isinstance(data, dict | list) and part in keys:
            data = data[part]  # type: ignore[index]
            path = (*path, part)
        elif detail["type"] == "missing" and i == len(detail["loc"]) - 1:
            path = (*path, part)
    if detail["type"].startswith("union_tag_"):
        return (*path, detail["ctx"]["discriminator"].strip("'"))
    return path


def value_at(data: Any, path: KeyPath) -> Any:
    """Return the part of nested mappings and lists that a key path leads to."""
    for part in path:
        data = data[part]
    return data


def _models_at(cls: type[BaseModel], data: Any, path: KeyPath) -> Models:
    """The classes that a mapping may be of, whatever its `name`."""
    models: Models = [cls]
    for part in path:
        models = models_below(models, data, part)
        data = data[part]
    return models


def models_below(models: Models, data: Any, key: str | int) -> Models:
    """Return the classes of `data[key]`, where `data` is of one of `models`, or a collection."""
    named = [model for model in _with_name(models, data) if key in keys_of(model)]
    if not named:  # an item of a list or of a mapping
        return models
    fields = (keys_of(model)[str(key)] for model in named)
    return [below for field in fields for below in _models_in(field.annotation)]


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a class by the keys that files write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _with_name(models: Models, data: Any) -> Models:
    """Those of the classes that the mapping names; all, if it names none of them."""
    if not isinstance(data, dict):
        return models
    return [model for model in models if data.get(_tag(model)) in _names(model)] or models


def _tag(model: type[BaseModel]) -> str:
    return next((tag for tag in _TAGS if tag in model.model_fields), "")


def _names(model: type[BaseModel]) -> tuple[str, ...]:
    tag = _tag(model)
    return get_args(model.model_fields[tag].annotation) if tag else ()


def _all_keys(model: type[BaseModel], parent: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in keys_of(model).items():
        yield (*parent, name)
        for below in _models_in(field.annotation):
            yield from _all_keys(below, (*parent, name))
