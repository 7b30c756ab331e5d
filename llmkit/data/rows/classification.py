"""Rows of classification: which column is which, and what can be wrong with a row."""


from llmkit.data.rows.table import Rows, need
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData

LABEL_ROLES = ("label",)  # the roles of columns that only training and evaluation read
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
