"""Define the base of every table of a recipe (strict, frozen, without unknown keys), and read what fields one has."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from llmkit.recipe.types import Type, read_annotation

T = TypeVar("T")


class ReadOnly(Mapping[str, T], Generic[T]):
    """An immutable table whose keys llmkit does not define; its values are returned as copies."""

    def __init__(self, values: Mapping[str, T] | None = None) -> None:
        self._values = copy.deepcopy(dict(values or {}))

    def __getitem__(self, key: str) -> T:
        return copy.deepcopy(self._values[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ReadOnly({self._values!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.plain_serializer_function_ser_schema(dict)
        )

    @classmethod
    def _validated(cls, value: Any) -> ReadOnly[T]:
        if not isinstance(value, Mapping):
            raise ValueError("must be a table")
        return value if isinstance(value, cls) else cls(value)


class Table(BaseModel):
    """A table that takes only the fields it defines, never converts a type, and is frozen."""

    # Schemas are built on first use: a recipe has few of these tables, and each costs milliseconds at the start.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _arrays_as_tuples(cls, values: Any) -> Any:
        """Freeze the arrays of TOML, which no field takes as lists."""
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


@cache
def field_types(table: type[Table]) -> dict[str, Type]:
    """Return the type of each field of a table, from its written annotation."""
    written = {
        name: text for base in reversed(table.__mro__) for name, text in vars(base).get("__annotations__", {}).items()
    }
    types = {name: read_annotation(written[name]) for name in table.model_fields}
    return types | dict.fromkeys((*nested_tables(table), *named_tables(table)), Type(frozenset({"dict"})))


def nested_tables(table: type[Table]) -> dict[str, type[Table]]:
    """Return the fields of a table that are tables too, with their classes."""
    tables = {name: _table_in(field.annotation) for name, field in table.model_fields.items()}
    under_names = named_tables(table)
    return {name: inner for name, inner in tables.items() if inner is not None and name not in under_names}


def named_tables(table: type[Table]) -> dict[str, type[Table]]:
    """Return the fields that hold several tables, each under a name that the user chooses, with their classes."""
    tables = {
        name: _table_in(field.annotation)
        for name, field in table.model_fields.items()
        if get_origin(field.annotation) is Mapping
    }
    return {name: inner for name, inner in tables.items() if inner is not None}


def _table_in(annotation: Any) -> type[Table] | None:
    candidates = (annotation, *get_args(annotation))
    return next(
        (candidate for candidate in candidates if isinstance(candidate, type) and issubclass(candidate, Table)), None
    )
