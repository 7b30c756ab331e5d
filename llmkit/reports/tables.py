"""Write tables for a terminal, a spreadsheet, Markdown, LaTeX and programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmkit.data.display import cut
from llmkit.terminal import columns_of, printable

Format = Literal["table", "csv", "md", "latex", "json"]
LEAST_WIDTH = 8  # of a cut column
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: "\\" + character for character in "&%$#_{}"
}


def render(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], format: Format = "table", width: int | None = None
) -> str:
    """Render `rows` as a table of `columns`, with a line end behind the last line.

    Values are text, numbers, booleans or None (an empty cell; null in JSON). Tables for people round numbers to four
    digits; CSV and JSON keep them. A row's key that is not in `columns` is left out. The widest texts of a "table" are
    cut where it would be wider than `width` columns of a terminal.
    """
    if format == "json":
        return json.dumps([{name: row.get(name) for name in columns} for row in rows], indent=2) + "\n"
    if format == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if row.get(name) is None else row[name] for name in columns] for row in rows)
        return out.getvalue()
    cells = [[_shown(row.get(name)) for name in columns] for row in rows]
    right = [_is_numeric([row.get(name) for row in rows]) for name in columns]
    if format == "md":
        marks = ["---:" if numeric else "---" for numeric in right]
        lines = [columns, marks, *([cell.replace("|", r"\|") for cell in line] for line in cells)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if format == "latex":
        body = [[_escaped(cell) for cell in line] for line in [columns, *cells]]
        head, *others = (f"{' & '.join(line)} \\\\\n" for line in body)
        places = "".join("r" if numeric else "l" for numeric in right)
        rules = (r"\toprule", r"\midrule", r"\bottomrule")  # of the package booktabs
        return (
            f"\\begin{{tabular}}{{{places}}}\n{rules[0]}\n{head}{rules[1]}\n{''.join(others)}{rules[2]}\n"
            "\\end{tabular}\n"
        )
    lines = [list(columns), *cells]
    widths = [max(columns_of(line[i]) for line in lines) for i in range(len(columns))]
    texts = [i for i, numeric in enumerate(right) if not numeric]
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(texts, key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= LEAST_WIDTH:
            break
        widths[widest] -= 1
    return "".join(_line(line, widths, right) + "\n" for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for cell, width, numeric in zip(cells, widths, right, strict=True):
        cell = cut(cell, width)
        space = " " * (width - columns_of(cell))
        padded.append(space + cell if numeric else cell + space)
    return "  ".join(padded).rstrip()


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))


def _is_numeric(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
