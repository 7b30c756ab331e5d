"""Rows of classification: which column is which, and what can be wrong with a row."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.data.rows.cells import ABSENT, value_at
from llmkit.data.rows.reader import Examined, Unusable, text_in
from llmkit.data.rows.table import Rows, need
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData

if TYPE_CHECKING:
    from llmkit.data.rows import classification
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = classification


texts = None  # a tokenizer of the run's own is trained on the inputs
LABEL_ROLES = ("label",)  # the roles of columns that only training and evaluation read
reshape = None  # rows are read as they come
LABELS = ("label", "labels")
# Pairs of columns that data sets of two texts use; the first that is there counts.
PAIRS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis")),
    *(("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"), ("query", "passage")),
)
TEXTS = ("text", "sentence", "content", "review")
NUMBERING = ("idx", "id", "index")  # columns that are no text


def resolve_columns(data: ClassificationData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Which column is the `text`, the `text_pair` (if any) and the `label`; UserError where that is not clear."""
    columns = rows.columns
    wanted = {"text": data.text_column, "text_pair": data.text_pair_column, "label": data.label_column}
    for role, name in wanted.items():
        if name is not None and (labelled or role != "label"):
            need(rows, name, role)
    found = {role: name for role, name in wanted.items() if name is not None}
    if "label" not in found:
        known = [c for c in LABELS if c in columns] or [c for c in rows.class_names if c in columns]
        if labelled and len(known) != 1:
            raise UserError(
                f"{rows.source}: which column is the label?", f"set data.label_column to one of: {', '.join(columns)}"
            )
        found.update({"label": known[0]} if known else {})
    if "text" not in found:
        others = [c for c in columns if c not in found.values() and c not in NUMBERING]
        pairs = [pair for pair in PAIRS if set(pair) <= set(others)] if "text_pair" not in found else []
        single = [c for c in TEXTS if c in others and not any(c in pair for pair in pairs)]
        if len(pairs) + len(single) > 1 or (not pairs and not single and len(others) != 1):
            raise UserError(
                f"{rows.source}: which column is the text?",
                f"set data.text_column (of two texts, data.text_pair_column too) to one of: {', '.join(others)}",
            )
        if pairs:
            found["text"], found["text_pair"] = pairs[0]
        else:
            found["text"] = (single or others)[0]
    if not labelled:
        found.pop("label", None)
    return found


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: ClassificationData, evaluation: bool) -> Examined:
    """Read the texts of a row and its label as it stands; what labels mean is seen in the whole column."""
    for role in ("text", "text_pair"):
        if role in columns:
            text_in(row, columns[role])
    if "label" not in columns:
        return Examined()
    label = value_at(row, columns["label"])
    if label is ABSENT or label is None:
        raise Unusable("no label", "no label")
    return Examined(label)


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: ClassificationData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw each label in its share; values, of which most are different, all alike."""
    labels = [str(target) for target in targets]
    return labels if 2 * len(set(labels)) <= len(labels) else [None] * len(labels), {}
