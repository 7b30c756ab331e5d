"""Represent the type of a key: read it from an annotation, check a value against it, describe it in words."""

import ast
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.recipe.toml import Key, toml_value

Lookup = Callable[[str], tuple[str, ...]]  # the name of an enum -> its values, or nothing

_ANY = "any"
_SCALARS = ("bool", "int", "float", "str")
_ARRAYS = ("list", "List", "tuple", "Tuple", "Sequence")
_TABLES = ("dict", "Dict", "Mapping", "ReadOnly")
_DESCRIPTIONS = {
    "int": ("an integer", "integers"),
    "float": ("a number", "numbers"),
    "str": ("a string", "strings"),
    "list": ("an array", "arrays"),
    "dict": ("a table", "tables"),
    "bool": ("true or false", "booleans"),
    _ANY: ("a string, a number, true or false, an array or a table", "values"),
}


@dataclass(frozen=True)
class Type:
    """The kinds of TOML value that a key takes (any of `kinds`), and the single `values` that it takes besides."""

    kinds: frozenset[str] = frozenset()
    values: tuple[Any, ...] = ()
    item: "Type | None" = field(default=None)  # of an array; None is anything
    entry: "Type | None" = field(default=None)  # of a table; None is anything

    @property
    def text_only(self) -> bool:
        """Tell whether only strings are allowed, so that a command-line value needs no quotes."""
        return self.kinds <= {"str"} and all(isinstance(value, str) for value in self.values)

    @property
    def takes_text(self) -> bool:
        """Tell whether a string is allowed."""
        return "str" in self.kinds or any(isinstance(value, str) for value in self.values)

    def admits(self, value: Any) -> bool:
        """Tell whether `value` has this type; an integer counts as a float too."""
        if any(type(value) is type(allowed) and value == allowed for allowed in self.values):
            return True
        kind = _kind(value)
        if kind == "list" and "list" in self.kinds:
            return self.item is None or all(map(self.item.admits, value))
        if kind == "dict" and "dict" in self.kinds:
            return self.entry is None or all(map(self.entry.admits, value.values()))
        if _ANY in self.kinds:
            return kind != "date"  # no field of any class takes a date
        return kind in self.kinds or (kind == "int" and "float" in self.kinds)

    def mistakes(self, value: Any, path: Key) -> Iterator[tuple[Key, str]]:
        """Yield each key at or below `path` whose value is not admitted, and why."""
        if isinstance(value, Mapping) and "dict" in self.kinds and self.entry:
            for key, item in value.items():
                yield from self.entry.mistakes(item, (*path, key))
        elif not self.admits(value):
            allowed = [str(item) for item in self.values if isinstance(item, str)]
            close_value = nearest(value, allowed) if isinstance(value, str) else ""
            if close_value:
                yield path, f'{toml_value(value)} is not one of its values, did you mean "{close_value}"?'
            else:
                yield path, f"must be {self}, not {_show(value)}"

    def __str__(self) -> str:
        return self.describe(0)

    def describe(self, number: int) -> str:
        """Describe the type: `a string or an array of strings` (number 0), `strings or arrays of strings` (1)."""
        parts = []
        for kind, forms in _DESCRIPTIONS.items():
            if kind in self.kinds:
                inner = self.item if kind == "list" else self.entry if kind == "dict" else None
                parts.append(forms[number] + (f" of {inner.describe(1)}" if inner and _ANY not in inner.kinds else ""))
        if self.values:
            parts.append(("one of " if len(self.values) > 1 else "") + ", ".join(map(toml_value, self.values)))
        return " or ".join(parts)


ANYTHING = Type(frozenset({_ANY}))


def _kind(value: Any) -> str:
    for kind, python in (("bool", bool), ("int", int), ("float", float), ("str", str)):
        if isinstance(value, python):
            return kind
    if isinstance(value, list | tuple):
        return "list"
    return "dict" if isinstance(value, Mapping) else "date"


def _show(value: Any) -> str:
    kind = _kind(value)
    if kind in ("dict", "date"):
        return f"a {kind}".replace("dict", "table")
    text = toml_value(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return {"str": "the string ", "list": "the array "}.get(kind, "") + text


def read_annotation(text: str, enum: Lookup = lambda name: ()) -> Type:
    """Read the type of an annotation such as `dict | str | None`; an unknown part of it admits anything.

    `enum` returns the values of an enum by its name.
    """
    return _read(ast.parse(text, mode="eval").body, enum)


def _union(*types: Type) -> Type:
    kinds = frozenset[str]().union(*(type_.kinds for type_ in types))
    if _ANY in kinds:
        return ANYTHING
    arrays = [type_.item for type_ in types if "list" in type_.kinds]
    tables = [type_.entry for type_ in types if "dict" in type_.kinds]
    return Type(
        kinds,
        tuple(value for type_ in types for value in type_.values),
        _union(*arrays) if arrays and None not in arrays else None,  # type: ignore[arg-type]
        _union(*tables) if tables and None not in tables else None,  # type: ignore[arg-type]
    )


def _read(node: ast.expr, enum: Lookup) -> Type:
    if isinstance(node, ast.Constant):
        return _read(ast.parse(node.value, mode="eval").body, enum) if isinstance(node.value, str) else Type()
    if (parts := _alternatives(node)) != [node]:
        return _choice(parts, enum)
    if isinstance(node, ast.Subscript):
        inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _read_subscript(_name(node.value), inside, enum)
    name = _name(node)
    if name in _SCALARS:
        return Type(frozenset({name}))
    if name in _ARRAYS or name in _TABLES:
        return Type(frozenset({"list" if name in _ARRAYS else "dict"}))
    values = enum(name)
    return Type(values=values) if values else ANYTHING


def _read_subscript(name: str, inside: list[ast.expr], enum: Lookup) -> Type:
    if name == "Literal":
        values = tuple(ast.literal_eval(value) for value in inside)
        # peft writes "pissa_niter_[number of iters]": with a pattern among its values the list is not complete
        open_ended = any("[" in str(value) for value in values)
        return Type(frozenset({"str"})) if open_ended else Type(values=values)
    if name in _ARRAYS:
        one_type = len(inside) == 1 or ast.unparse(inside[1]) == "..."
        return Type(frozenset({"list"}), item=_read(inside[0], enum) if one_type else None)
    if name in _TABLES and (len(inside) == 1 or ast.unparse(inside[0]) == "str"):
        entry = _read(inside[-1], enum)
        return Type(frozenset({"dict"}), entry=None if _ANY in entry.kinds else entry)
    return ANYTHING


def _choice(parts: list[ast.expr], enum: Lookup) -> Type:
    types = [_read(part, enum) for part in parts]
    if any(isinstance(part, ast.Name) and type_.values for part, type_ in zip(parts, types, strict=True)):
        # `SchedulerType | str`: the string is one of the enum's own
        types = [type_ for type_ in types if type_.kinds != {"str"}]
    return _union(*types)


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return _alternatives(node.left) + _alternatives(node.right)
    if isinstance(node, ast.Subscript) and _name(node.value) in ("Optional", "Union"):
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [part for member in members for part in _alternatives(member)]
    return [node]


def _name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return the candidate that `word` was most likely meant to be, or ""."""
    names, typed = list(candidates), word.lower()
    completion = next((name for name in names if len(typed) > 2 and name.startswith(typed)), "")  # adam -> adamw_torch
    return completion or next(iter(difflib.get_close_matches(typed, names, 1)), "")
