"""JSON Schema of settings files, by which editors complete, explain and check keys.

It says of one file what can be said without the others: a file may extend another and get values on
the command line, so no key is required. What goes together, `load_config` checks.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import TaggedUnionSchema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_FILE = "brim.schema.json"
"""Where the schema of recipes lies, beside them."""
MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""First line of a recipe, from which editors know its schema; the path counts from the recipe."""


def file_schema(cls: type[BaseModel], title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the files that `load_config` reads into a class.

    Docstrings behind fields are the descriptions; `extends` and `variants` are keys too.

    Args:
        cls: the class of the settings.
        title: what editors call such a file.
    """
    schema = cls.model_json_schema(schema_generator=_Partial)
    groups = schema.pop("$defs", {})
    for group in groups.values():
        for field in group.get("properties", {}).values():
            if "const" in field:  # the name that chooses the class: say what that is
                field.setdefault("description", group["description"])
    settings = {"type": "object", "additionalProperties": False, "properties": schema["properties"]}
    mapping = {"type": ["object", "null"]}
    choices = {**mapping, "additionalProperties": {"$ref": f"#/$defs/{cls.__name__}"}}
    variants = {
        **mapping,
        "description": "Names of settings that belong together: `NAME: {VALUE: {settings}}`, "
        "chosen on the command line by `NAME=VALUE`; null takes away those of an extended file.",
        "propertyNames": {"not": {"enum": list(schema["properties"])}},
        "additionalProperties": choices,
    }
    extends = {
        "type": "string",
        "description": "Start from another file, found from the folder of this one, or from a "
        "bundled recipe by its name; what is written here wins.",
    }
    keys = {"extends": extends, **schema["properties"], "variants": variants}
    whole = {"$schema": DIALECT, **schema, "title": title, "properties": keys}
    described: dict[str, Any] = _one_line({**whole, "$defs": {**groups, cls.__name__: settings}})
    return described


class _Partial(GenerateJsonSchema):
    """Of mappings that may lack any key, also the one that says which class is meant."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return False

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # it would be the key in capitals

    def tagged_union_schema(self, schema: TaggedUnionSchema) -> JsonSchemaValue:
        # Without its name a mapping can be of several classes, which `oneOf` would refuse.
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}


def _one_line(schema: Any) -> Any:
    """The schema with each paragraph of a description on one line, for editors show line ends."""
    if isinstance(schema, list):
        return [_one_line(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    text = schema.get("description")
    if isinstance(text, str):
        schema = {**schema, "description": re.sub(r"(?<!\n)\n(?!\n)", " ", text)}
    return {key: _one_line(value) for key, value in schema.items()}
