"""Read from a run directory all that its report shows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit import process
from llmkit.errors import UserError, quantity, say
from llmkit.recipe.schema import Report
from llmkit.reports import curves, evaluation, pictures
from llmkit.reports.curves import Log
from llmkit.reports.evaluation import Part
from llmkit.reports.formatting import described, figure, sentence
from llmkit.reports.pictures import Line, Picture
from llmkit.runs import compatibility
from llmkit.runs import directory as runs


@dataclass
class Contents:
    """All that a report shows."""

    directory: Path
    record: dict[str, Any]
    log: Log
    parts: list[Part]
    settings: Report
    recipe: list[tuple[str, list[tuple[str, str, str]]]]  # by table: key, value, origin

    @classmethod
    def of(cls, directory: Path) -> "Contents":
        """Read a run directory; what is not there is left out."""
        record = runs.read_record(directory)
        table = compatibility.tables_of(directory).get("report", {})
        settings = Report(**{key: value for key, value in table.items() if key in Report.model_fields})
        parts = evaluation.read(directory, record)
        recipe = directory / runs.RECIPE_FILE
        contents = cls(
            directory,
            record,
            curves.read(directory),
            parts,
            settings,
            list(_recipe(recipe.read_text(errors="replace"))) if recipe.is_file() else [],
        )
        if not settings.rows:
            contents.without_texts()
        return contents

    def without_texts(self) -> None:
        """Leave out the texts of rows and samples."""
        self.log.samples = []
        for part in self.parts:
            part.worst = []

    def explain(self) -> None:
        """Let each of the worst rows say which words decided, where the model can tell."""
        process.collect_from_here()
        for part in self.parts:
            rows = [row for row in part.worst if "columns" in row]
            if not rows:
                continue
            from llmkit.reports import attributions  # it needs the model, and torch for it

            say(f"words    of {quantity(len(rows), 'row')} are weighed by integrated gradients")
            try:
                asked = [{**row["columns"], **row.get("labels", {})} for row in rows]
                for attribution in attributions.explain(self.directory / part.folder, asked):
                    rows[attribution.row]["attribution"] = attribution
            except UserError as problem:
                say(f"note     no words are shown that decided: {problem.message}")

    def loss_picture(self) -> Picture | None:
        """Draw the losses of training and evaluation; None where none was logged."""
        drawn = [
            Line(name, self.log.curves[key], evaluated)
            for key, name, evaluated in (("loss", "training", False), ("eval_loss", "evaluation", True))
            if key in self.log.curves
        ]
        if not drawn:
            return None
        about = self.trivial.get("eval_loss")
        level = None if about is None else (about["answer"], about["value"])
        best = self.record.get("best", {}).get("step") or None
        descriptions = [described(line.name + " loss", line.curve) for line in drawn]
        descriptions += [] if level is None else [f"{level[0]}: {figure(level[1])}"]
        descriptions += [] if best is None else [f"best step: {best:,}"]
        return pictures.lines("loss", "Loss over steps", sentence(descriptions), drawn, level, best, scaled=True)

    @property
    def trivial(self) -> dict[str, Any]:
        """Return the trivial answers by metric."""
        answers: dict[str, Any] = self.record.get("trivial", {}).get("metrics", {})
        return answers

    @property
    def metrics(self) -> dict[str, Any]:
        """Return the metrics at the end; of a run that is not finished those of its last evaluation."""
        last = self.log.evaluations[-1] if self.log.evaluations else {}
        at_the_end: dict[str, Any] = self.record.get("metrics") or {k: v for k, v in last.items() if k != "step"}
        return at_the_end


def _recipe(text: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each table of a resolved recipe with its keys, values and origins, which stand behind them."""
    table, rows = "", list[tuple[str, str, str]]()
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(.+)\]", line):
            if rows:
                yield table, rows
            table, rows = header[1], []
        elif " = " in line and not line.startswith("#"):
            key, _, rest = line.partition(" = ")
            value, _, origin = rest.rpartition("  # ")
            rows.append((key, value or origin, origin if value else ""))
    if rows:
        yield table, rows
