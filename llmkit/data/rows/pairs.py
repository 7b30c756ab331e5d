"""Rows of source and target: which column is which, the texts in them, and what can be wrong with a row."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.data.files import text_of
from llmkit.data.rows.reader import Examined, Unusable
from llmkit.data.rows.table import Rows, need
from llmkit.errors import UserError
from llmkit.recipe.data_tables import PairData

if TYPE_CHECKING:
    from llmkit.data.rows import pairs
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = pairs


ROLES = ("source", "target")
LABEL_ROLES = ("target",)  # the roles of columns that only training and evaluation read
# Pairs of columns that data sets use; of each pair the first is read and the second is written.
PAIRS = (
    *(("document", "summary"), ("article", "highlights"), ("dialogue", "summary"), ("text", "summary")),
    *(("article", "summary"), ("article", "abstract"), ("description", "abstract"), ("text", "headline")),
    *(("source", "target"), ("input", "output"), ("input", "target"), ("text", "target"), ("src", "tgt")),
    *(("source_text", "target_text"), ("input_text", "target_text")),
)
TRANSLATION = "translation"  # the Hub's column of translations: a table from a language to the text


def resolve_columns(data: PairData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `source` and which the `target`; UserError where that is not clear.

    The entry `en` of the column `translation` is called `translation.en`.
    """
    columns, found = rows.columns, {}
    wanted = {"source": (data.source_column, data.source_lang), "target": (data.target_column, data.target_lang)}
    for role, (column, language) in wanted.items():
        if role in LABEL_ROLES and not labelled:
            continue
        if column is not None:
            need(rows, column, role)
            found[role] = column
        elif language in columns:
            found[role] = language
        elif language is not None and TRANSLATION in columns:
            found[role] = f"{TRANSLATION}.{language}"
    left = [role for role in ROLES if role not in found and (labelled or role not in LABEL_ROLES)]
    if left and TRANSLATION in columns:
        entry = next(iter(rows))[1][TRANSLATION]
        keys = f" to two of: {', '.join(entry)}" if isinstance(entry, Mapping) else ""
        raise UserError(
            f"{rows.source}: which language is translated into which?",
            f"set data.source_lang and data.target_lang{keys}",
        )
    others = [column for column in columns if column not in found.values()]
    known = dict.fromkeys(tuple(pair[ROLES.index(role)] for role in left) for pair in PAIRS)
    fitting = [names for names in known if set(names) <= set(others)]
    if not fitting and len(left) == len(others) == 1:
        fitting = [tuple(others)]
    if len(fitting) != 1:
        raise UserError(
            f"{rows.source}: which column is the {left[0]}?",
            f"set {' and '.join(f'data.{role}_column' for role in left)}, from: {', '.join(others)}",
        )
    found.update(zip(left, fitting[0], strict=True))
    if found["source"] == found.get("target"):
        raise UserError(f"{rows.source}: `{found['source']}` is both source and target", "name two columns")
    return found


def texts_in(row: Mapping[str, Any], column: str, place: str, key: str) -> list[str]:
    """The text in a column of a row, or the texts where it holds a list."""
    outer, _, inner = column.partition(".")
    if column not in row and isinstance(row.get(outer), Mapping):
        row, column = row[outer], inner
    value = row.get(column)
    if isinstance(value, list):
        return [text_of({column: each}, column, place, key) for each in value]
    return [text_of(row, column, place, key)]


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """What a tokenizer of one's own is trained on: both sides. `encode` finds, with its place, what is no text."""
    for column in columns.values():
        outer, _, inner = column.partition(".")
        table = row.get(outer)
        value = row[column] if column in row else table.get(inner) if isinstance(table, Mapping) else None
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: PairData, evaluation: bool) -> Examined:
    """Read the source of a row and its target, which is not empty."""
    try:
        texts_in(row, columns["source"], "", "data.source_column")
        targets = texts_in(row, columns["target"], "", "data.target_column") if "target" in columns else None
    except UserError as fault:
        raise Unusable("no text", fault.message.removeprefix(": "), fault.hint) from fault
    if targets is not None and (not targets or not targets[0].strip()):
        raise Unusable("empty target", f"`{columns['target']}` is empty")
    return Examined()


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: PairData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw from all rows alike."""
    return [None] * len(targets), {}
