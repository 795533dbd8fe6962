"""What is wrong with settings, on one line: where it was written, and what was probably meant.

pydantic knows what is wrong; here its locations become key paths, its words a user's words, and
the classes of the settings tell which key comes nearest.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from brim.config.yaml import Document, KeyPath, dotted

Models = Sequence[type[BaseModel]]

COMMAND_LINE = "command line: "

# The keys that tell the classes of a union apart.
_TAGS = ("name", "family")


class Mistake(NamedTuple):
    """What is wrong, with the setting that it is wrong with, and where that was written."""

    place: str
    path: KeyPath
    problem: str


def explain(mistake: Mistake, more: int = 0, culprits: Sequence[str] = ()) -> str:
    """One line on a mistake; its place is that of the culprits, where there are some.

    Args:
        mistake: what is wrong.
        more: how many others there are.
        culprits: overrides without any of which there would be no such mistake.
    """
    place, path, problem = mistake
    if culprits:
        place = f"{COMMAND_LINE}{' '.join(culprits)}"
    if path and not place.startswith(f"{COMMAND_LINE}{dotted(path)}="):
        place = f"{place}: {dotted(path)}"
    others = f" (and {more} more)" if more else ""
    return " ".join(f"{place}: {problem}{others}".split())


def first_mistake(
    cls: type[BaseModel], document: Document, error: ValidationError
) -> tuple[Mistake, int]:
    """The first mistake and the number of others; unknown keys explain missing ones: they lead."""
    mistakes: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden"):
        mistakes.setdefault(key_path(document.data, detail), []).append(detail)
    # Of a union of text and settings, what is wrong inside the settings says more.
    parents = {parent for path in mistakes for parent in _parents(path)}
    paths = [path for path in mistakes if path not in parents]
    path = paths[0]
    problem = _problem(cls, document.data, path, mistakes[path])
    if mistakes[path][0]["type"] == "value_error":
        # What is wrong between settings begins with the one to change: `optim.optimizer: …`.
        key, colon, rest = problem.partition(": ")
        below = tuple(key.split("."))
        models = _models_at(cls, document.data, path)
        if colon and any(below[0] in model.model_fields for model in models):
            path, problem = (*path, *below), rest
    return Mistake(document.origin(path), path, problem), len(paths) - 1


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
        spellings = (str(value), str(value).lower())
        near = next(filter(None, (difflib.get_close_matches(s, choices, 1) for s in spellings)), [])
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{shown(value)} is not one of {', '.join(choices)}{hint}"
    messages = dict.fromkeys(detail["msg"] for detail in details)  # "Input should be a valid array"
    text = " or ".join(re.sub(r"^\w+ should ", "must ", message) for message in messages)
    for pydantic, ours in (
        ("an object", "a mapping"),
        ("valid array", "list"),
        (" after validation, not 0", ""),
    ):
        text = text.replace(pydantic, ours)
    return f"{shown(value)} {text.replace(' or must be ', ' or ')}"


def shown(value: Any) -> str:
    """A value as errors quote it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest_key(cls: type[BaseModel], data: Any, path: KeyPath) -> str:
    """Whose key it is, or the key of the same mapping or of any other that was probably meant."""
    parent, key = path[:-1], str(path[-1])
    models = _models_at(cls, data, parent)
    owners = [model for model in models if key in model.model_fields and _names(model)]
    if owners:
        names = " or ".join(name for model in owners for name in _names(model))
        return f"it belongs to {dotted((*parent, _tag(owners[0])))} {names}"
    here = {
        name: (*parent, name)
        for model in _with_name(models, value_at(data, parent))
        for name in model.model_fields
    }
    anywhere: dict[str, KeyPath] = {}
    for known in sorted(_all_keys(cls), key=len):
        anywhere.setdefault(str(known[-1]), known)
    if key in anywhere:
        return f"did you mean {dotted(anywhere[key])}?"
    initials = "".join(word[:1] for word in key.split("_"))  # learning_rate is lr
    for keys in (here, anywhere):
        for near in difflib.get_close_matches(key, keys, n=1) or {initials} & keys.keys():
            return f"did you mean {dotted(keys[near])}?"
    return f"the keys here are {', '.join(here)}"


def key_path(data: Any, detail: ErrorDetails) -> KeyPath:
    """The key path of an error: pydantic's location without the union members that it names."""
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


def _parents(path: KeyPath) -> list[KeyPath]:
    return [path[:i] for i in range(len(path))]


def value_at(data: Any, path: KeyPath) -> Any:
    """The part of nested mappings and lists that a key path leads to."""
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
    """The classes of `data[key]`, where `data` is of one of `models`, or a collection of them."""
    named = [model for model in _with_name(models, data) if key in model.model_fields]
    if not named:  # an item of a list or of a mapping
        return models
    return [
        below for model in named for below in _models_in(model.model_fields[str(key)].annotation)
    ]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _with_name(models: Models, data: Any) -> Models:
    if not isinstance(data, dict):
        return models
    return [model for model in models if data.get(_tag(model)) in _names(model)] or models


def _tag(model: type[BaseModel]) -> str:
    return next((tag for tag in _TAGS if tag in model.model_fields), "")


def _names(model: type[BaseModel]) -> tuple[str, ...]:
    """The names that stand for a class of a union."""
    tag = _tag(model)
    return get_args(model.model_fields[tag].annotation) if tag else ()


def _all_keys(model: type[BaseModel], parent: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in model.model_fields.items():
        yield (*parent, name)
        for below in _models_in(field.annotation):
            yield from _all_keys(below, (*parent, name))
