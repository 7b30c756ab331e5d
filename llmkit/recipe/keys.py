"""Know every key of a recipe and its type."""

from collections.abc import Iterator

from llmkit.recipe import schema, upstream
from llmkit.recipe.table import field_types, named_tables, nested_tables
from llmkit.recipe.toml import Key
from llmkit.recipe.types import ANYTHING, Type

TEXT = Type(frozenset({"str"}))


def key_type(key: Key, task: object) -> Type | None:
    """Return the type of a key for `task`; None if there is no such key, or if it is a table of the recipe."""
    table, rest = key[0], key[1:]
    if table == "tasks":
        return _part_type(rest)
    if not rest:
        return TEXT if table in ("task", "output_dir", "output_mirror") else None
    if table in schema.UPSTREAM_TABLES:
        field = upstream.fields(schema.UPSTREAM_TABLES[table]).get(rest[0])
        kind = field.type if field else None
    else:
        own_table = schema.own_tables(task).get(table)
        while own_table and len(rest) > 1:
            if rest[0] in nested_tables(own_table):
                own_table, rest = nested_tables(own_table)[rest[0]], rest[1:]
            elif rest[0] in named_tables(own_table) and len(rest) > 2:
                own_table, rest = named_tables(own_table)[rest[0]], rest[2:]
            else:
                break
        kind = field_types(own_table).get(rest[0]) if own_table else None
    for _ in rest[1:]:
        kind = None if kind is None or not kind.kinds & {"dict", "any"} else kind.entry or ANYTHING
    return kind


def _part_type(rest: Key) -> Type | None:
    """Return the type of a key below [tasks.NAME], whatever the part's task is."""
    if len(rest) == 2:
        return {"weight": Type(frozenset({"float"})), "task": TEXT, "recipe": TEXT}.get(rest[1])
    if len(rest) < 3 or rest[1] not in ("data", "evaluation"):
        return None
    return next(filter(None, (key_type(rest[1:], task) for task in schema.HEADED)), None)


def known_keys(task: object, name: str = "") -> Iterator[str]:
    """Yield every key of a recipe, dotted, down to the fields of its tables; upstream's only if one may be `name`."""
    yield from ("task", "output_dir", "output_mirror")
    for table_name, table in schema.own_tables(task).items():
        yield from (f"{table_name}.{key}" for key in table.model_fields)
    for table_name, class_name in schema.UPSTREAM_TABLES.items():
        if name in upstream.text(class_name):  # parsing it takes 20 ms and more
            yield from (f"{table_name}.{key}" for key in upstream.fields(class_name))
    for table_name, table in schema.own_tables(task).items():
        for key, inner in nested_tables(table).items():
            yield from (f"{table_name}.{key}.{field}" for field in inner.model_fields)
