"""Rows of source and target: which column is which, the texts in them, and what can be wrong with a row."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmkit.data.files import BadRow
from llmkit.data.rows.cells import ABSENT, JOINED, find_column, parsed, value_at
from llmkit.data.rows.reader import Examined, Unusable, text_in
from llmkit.data.rows.table import HEAD, Rows, need
from llmkit.errors import UserError
from llmkit.recipe.data_tables import PairData

if TYPE_CHECKING:
    from llmkit.data.rows import pairs
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = pairs


ROLES = ("source", "target")
LABEL_ROLES = ("target",)  # the roles of columns that only training and evaluation read
reshape = None  # rows are read as they come
# Pairs of columns that data sets use; of each pair the first is read and the second is written.
PAIRS = (
    *(("document", "summary"), ("article", "highlights"), ("dialogue", "summary"), ("text", "summary")),
    *(("article", "summary"), ("article", "abstract"), ("description", "abstract"), ("text", "headline")),
    *(("source", "target"), ("input", "output"), ("input", "target"), ("text", "target"), ("src", "tgt")),
    *(("source_text", "target_text"), ("input_text", "target_text")),
)
TARGETS = ("summary", "highlights", "abstract", "headline", "target", "target_text", "tgt")  # names of targets alone
NUMBERING = ("idx", "id", "index")  # columns that are no text
TRANSLATION = "translation"  # the Hub's column of translations: a table from a language to the text


def resolve_columns(data: PairData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `source` and which the `target`; UserError where that is not clear.

    The entry `en` of the column `translation` is called `translation.en`; several targets are joined by JOINED.
    """
    columns, found = rows.columns, {}
    translation = find_column(columns, TRANSLATION)
    wanted = {"source": (data.source_column, data.source_lang), "target": (data.target_column, data.target_lang)}
    for role, (column, language) in wanted.items():
        if role in LABEL_ROLES and not labelled:
            continue
        if column is not None:
            names = (column,) if isinstance(column, str) else column
            found[role] = JOINED.join(need(rows, name, role) for name in names)
        elif language is not None and (name := find_column(columns, language)) is not None:
            found[role] = name
        elif language is not None and translation is not None:
            found[role] = f"{translation}.{language}"
    left = [role for role in ROLES if role not in found and (labelled or role not in LABEL_ROLES)]
    head = [row for _, row in islice(rows, HEAD) if not isinstance(row, BadRow)] if left else []
    if left and translation is not None:
        entry = parsed(value_at(head[0], translation)) if head else None
        keys = f" to two of: {', '.join(entry)}" if isinstance(entry, Mapping) else ""
        raise UserError(
            f"{rows.source}: which language is translated into which?",
            f"set data.source_lang and data.target_lang{keys}",
        )
    taken = {name for names in found.values() for name in names.split(JOINED)}
    others = [column for column in columns if column not in taken]
    if left:
        found.update(zip(left, _fitting(rows, left, others, head), strict=True))
    if found["source"] == found.get("target"):
        raise UserError(f"{rows.source}: `{found['source']}` is both source and target", "name two columns")
    return {role: found[role] for role in ROLES if role in found}


def _fitting(rows: Rows, left: Sequence[str], others: Sequence[str], head: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose the columns of the roles that are left: by the names in PAIRS, else those that must be meant.

    That is the one column left, or the one left with text; of two with text, if one has the name of a target.
    """
    by_name = {name.strip().casefold(): name for name in others}
    known = dict.fromkeys(tuple(pair[ROLES.index(role)] for role in left) for pair in PAIRS)
    fitting = [[by_name[name] for name in names] for names in known if set(names) <= set(by_name)]
    if not fitting:
        texts = list(others) if len(others) == 1 else [name for name in others if _holds_text(head, name)]
        named = [name for name in texts if name.strip().casefold() in TARGETS]
        may_be = {"source": [name for name in texts if name not in named] or texts, "target": named or texts}
        if all(len(may_be[role]) == 1 for role in left) and (len(left) == 1 or (named and len(texts) == 2)):
            fitting = [[may_be[role][0] for role in left]]
    if len(fitting) != 1:
        raise UserError(
            f"{rows.source}: which column is the {left[0]}?",
            f"set {' and '.join(f'data.{role}_column' for role in left)}, from: {', '.join(others)}",
        )
    return fitting[0]


def _holds_text(head: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Tell whether a column holds texts, most of them of several words; not numbers or ids."""
    if name.strip().casefold() in NUMBERING:
        return False
    values = [value for row in head if (value := value_at(row, name)) is not None and value is not ABSENT]
    texts = [value for value in values if isinstance(value, str)]
    return len(texts) == len(values) > 0 and 2 * sum(" " in text.strip() for text in texts) > len(texts)


def texts_in(row: Mapping[str, Any], column: str) -> list[str]:
    """Read the text in a column of a row, or the texts where it holds a list or is several columns."""
    value = value_at(row, column)
    if value is ABSENT and JOINED in column:  # one of several targets may be missing
        value = [text for name in column.split(JOINED) if (text := value_at(row, name)) is not ABSENT] or ABSENT
    if not isinstance(value, list):
        return [text_in(row, column)]
    flat = [text for each in value for text in (each if isinstance(each, list) else [each])]
    return [text_in({column: each}, column) for each in flat]


def references_in(row: Mapping[str, Any], column: str) -> list[str]:
    """Read the texts that may be written: the first is learned. Raises Unusable where there is none."""
    found = [text for text in texts_in(row, column) if text.strip()]
    if not found:
        raise Unusable("empty target", f"`{column}` is empty", "every row needs a target text")
    return found


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """Yield what a tokenizer of one's own is trained on: both sides."""
    for column in columns.values():
        yield from texts_in(row, column)


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: PairData, evaluation: bool) -> Examined:
    """Read the source of a row and its target, which is not empty."""
    texts_in(row, columns["source"])
    if "target" not in columns:
        return Examined()
    references = references_in(row, columns["target"])
    learned, first = references[0], texts_in(row, columns["target"])[0]
    return Examined(len(references), None if learned == first else "the first target is empty: the next one is learned")


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: PairData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw from all rows alike."""
    if count := sum(number > 1 for number in targets):
        note = f"{count:,} row{'s' * (count > 1)} with several targets: the first is learned, and all are scored"
        rows.notes[note] = ""
    return [None] * len(targets), {}
