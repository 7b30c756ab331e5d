"""What every table of a recipe is: strict, frozen, and never more than it says."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


class ReadOnly(Mapping[str, T], Generic[T]):
    """A table whose keys are not ours to fix. It cannot be changed: what it hands out is a plain copy."""

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
    """A table that takes the fields it names and no others, never converts a type and never changes."""

    # Built when they are used: of these tables a recipe has a few, and each costs milliseconds before the first word.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
