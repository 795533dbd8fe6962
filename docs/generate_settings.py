"""Write `docs/settings.md`, the reference of all settings, from the settings classes themselves.

python docs/generate_settings.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brim.training.settings import RunConfig

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

<!-- Written by `python docs/generate_settings.py`; change the classes in `src/brim`, not this. -->

Every key of a recipe. [Configuration](configuration.md) says how recipes and overrides work.
On the command line a key is written as `group.key=value`. A required key has no default.
"""

Schema = dict[str, Any]

# The keys that say which class of several a group is.
_TAGS = ("name", "family")


def render() -> str:
    """The page as Markdown: one section for each group of settings, in the order of a recipe."""
    schema = RunConfig.model_json_schema()
    groups = schema.pop("$defs")
    places: dict[str, list[str]] = {}
    for group, place in _walk(schema, groups, ""):
        known = places.setdefault(group, [])
        if place not in known:
            known.append(place)
    titles = {group: _title(groups[group], place) for group, place in places.items()}
    sections = [_section("Top level", schema, groups, titles)]
    sections += [_section(title, groups[group], groups, titles) for group, title in titles.items()]
    return "\n".join([HEAD, *sections])


def _walk(schema: Schema, groups: dict[str, Schema], place: str) -> Iterator[tuple[str, str]]:
    """Each group below `schema` with the key that it is found under, parents first."""
    for name, field in schema["properties"].items():
        key = f"{place}.{name}".removeprefix(".")
        found = _groups_of(field)
        yield from ((group, key) for group in found)
        for group in found:
            yield from _walk(groups[group], groups, key)


def _groups_of(field: Schema) -> list[str]:
    own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
    options = (*field.get("oneOf", []), *field.get("anyOf", []))
    return own + [group for option in options for group in _groups_of(option)]


def _title(group: Schema, places: list[str]) -> str:
    title = ", ".join(f"`{place}`" for place in places)
    for key in _TAGS:
        if "const" in (field := group["properties"].get(key, {})):
            return f"{title} with `{key}: {field['const']}`"
    return title


def _section(title: str, schema: Schema, groups: dict[str, Schema], titles: dict[str, str]) -> str:
    names = sorted(
        schema["properties"], key=lambda name: name not in _TAGS
    )  # otherwise as declared
    rows = [
        f"| `{name}` | {_type(field, titles)} | {_default(name, schema, groups)} | {_text(field)} |"
        for name in names
        for field in [schema["properties"][name]]
    ]
    head = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {title}", "", _text(schema), "", *head, *rows, ""])


def _type(field: Schema, titles: dict[str, str]) -> str:
    groups = _groups_of(field)
    if groups:
        titled = [titles[group] for group in groups]
        links = [
            f"[{title.partition(': ')[2].strip('`') or 'group'}](#{_anchor(title)})"
            for title in titled
        ]
        null = [option["type"] for option in field.get("anyOf", []) if "type" in option]
        return " or ".join([*links, *null])
    if "anyOf" in field:
        return " or ".join(_type(option, titles) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field["type"] == "array":
        items = field.get("items") or field["prefixItems"][0]
        size = f" of {field['maxItems']}" if "prefixItems" in field else ""
        return f"list{size}: {_type(items, titles)}"
    kinds = {"integer": "whole number", "boolean": "true or false", "object": "mapping"}
    return kinds.get(field["type"], field["type"].replace("string", "text")) + _bounds(field)


def _bounds(field: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(name: str, schema: Schema, groups: dict[str, Schema]) -> str:
    if name in schema.get("required", []):
        return "required"
    field = schema["properties"][name]
    value = field.get("default")
    if isinstance(value, dict):  # a group: only what differs from the group's own defaults
        group = groups[_groups_of(field)[0]]["properties"]
        changed = {key: item for key, item in value.items() if item != group[key].get("default")}
        return ", ".join(f"`{key}: {json.dumps(item)}`" for key, item in changed.items())
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _text(schema: Schema) -> str:
    return " ".join(schema.get("description", "").split()).replace("|", "\\|")


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = (c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")
    return "".join(kept)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
