"""Define the base of every table of a recipe: strict, frozen, without unknown keys."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

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
