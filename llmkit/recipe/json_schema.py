"""Describe recipes as a JSON Schema, for editors; it comes from the models and types that validate them."""

from collections.abc import Mapping
from typing import Any

from llmkit.recipe import catalogue
from llmkit.recipe.types import Type

DIALECT = "http://json-schema.org/draft-07/schema#"  # the newest that taplo knows
_KINDS = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes: of every task, so a key of another task is left to llmkit to refuse."""
    root: dict[str, Any] = {
        "$schema": DIALECT,
        "title": "A recipe of llmkit",
        "type": "object",
        "additionalProperties": False,
        "required": ["task"],
        "properties": {},
    }
    variants: dict[str, list[catalogue.RecipeKey]] = {}
    for key in catalogue.recipe_keys():
        variants.setdefault(key.name, []).append(key)
    for name, keys in variants.items():
        *above, last = name.split(".")
        table = _table(root, above)
        table["properties"][last] = _property(keys)
    for name, about in catalogue.tables().items():
        root["properties"][name]["description"] = about
    part = root["properties"]["tasks"]["additionalProperties"]["properties"]
    part |= {name: root["properties"][name] for name in ("data", "evaluation")}
    return root


def _table(root: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """Return the schema of the table at `path` below `root`, made where it is not there; NAME stands for any name."""
    for name, below in zip(path, [*path[1:], ""] if path else [], strict=True):
        root = (
            root.setdefault("additionalProperties", {}) if name == "NAME" else root["properties"].setdefault(name, {})
        )
        root["type"] = "object"
        if below != "NAME" and "properties" not in root:
            root |= {"additionalProperties": False, "properties": {}}
    return root


def _property(keys: list[catalogue.RecipeKey]) -> dict[str, Any]:
    """Return the schema of a key, which may have a type and a meaning for each of several tasks."""
    types = list({str(key.type): of_type(key.type) for key in keys}.values())
    result: dict[str, Any] = types[0] if len(types) == 1 else {"anyOf": types}
    result["description"] = "\n".join(
        f"{', '.join(key.tasks)}: {key.meaning}" if len(keys) > 1 else key.meaning for key in keys
    )
    if len(keys) == 1 and keys[0].default not in (None, (), {}):
        result["default"] = _plain(keys[0].default)
    return result


def of_type(type_: Type) -> dict[str, Any]:
    """Return the JSON Schema of a key's type."""
    if "any" in type_.kinds:
        return {}
    options: list[dict[str, Any]] = [{"type": json} for kind, json in _KINDS.items() if kind in type_.kinds]
    if "float" in type_.kinds and "int" in type_.kinds:
        options.remove({"type": "integer"})
    if "list" in type_.kinds:
        options.append({"type": "array", **({"items": of_type(type_.item)} if type_.item else {})})
    if "dict" in type_.kinds:
        options.append({"type": "object", **({"additionalProperties": of_type(type_.entry)} if type_.entry else {})})
    if type_.values:
        options.append({"enum": [_plain(value) for value in type_.values]})
    return options[0] if len(options) == 1 else {"anyOf": options}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
