"""Write `report.html` and `loss.svg` of a run, from what its directory holds."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit import process
from llmkit.errors import UserError, quantity, say
from llmkit.metrics import evaluation_metrics
from llmkit.recipe.schema import Report
from llmkit.reports import curves, evaluation, pictures
from llmkit.reports.curves import Curve, Log
from llmkit.reports.evaluation import Part
from llmkit.reports.pictures import Line, Picture
from llmkit.runs import compatibility
from llmkit.runs import directory as runs

LARGEST = 1_000_000  # bytes of a report
SHOWN_SAMPLES = 8  # times at which samples are shown
SHOWN_TEXT = 800  # characters of a text
LEAST_SHARE = 0.12  # of the word that decides most, below which a word is not marked
NAMED_WORDS = 5
# What a kept row has beside figures.
NO_FIGURES = (
    *("split", "row", "key", "worst", "columns", "labels", "decisions", "right", "attribution", "truth", "prediction"),
    *("scores", "true_text", "text"),
)
CURVES = 6  # metrics that have a picture
# The tasks whose words can be weighed.
EXPLAINED = ("text-classification", "token-classification", "multiple-choice", "question-answering")
# How the worst rows are ordered.
ORDER = {
    "text-classification": "those first of which the model was surest",
    "multiple-choice": "those first of which the model was surest",
    "token-classification": "those with the most errors first",
    "question-answering": "those without a right word first",
    "seq2seq": "the lowest chrF first",
    "chat": "the highest loss first",
}
TITLES = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm"}


def write_behind(directory: Path) -> None:
    """Write the report of a run that has just finished; a failure is said in one line and costs nothing else."""
    try:
        say(f"report   {write(directory)}")
    except (Exception, KeyboardInterrupt) as problem:  # a full disk, odd data, Ctrl-C: the run is finished all the same
        why = " ".join(f"{type(problem).__name__}: {problem}".split())
        say(f"warning  the report could not be written, and the run is finished all the same: {why}")


def write(directory: Path, explained: bool = False) -> Path:
    """Write `report.html` and `loss.svg` into a run directory, and show the picture in its model card.

    `explained`: mark the words that decided in each of the worst mistakes, which takes the model some seconds a row.
    Raises UserError for a folder that is no run.
    """
    if not runs.is_run(directory):
        raise UserError(
            f"`{directory}` is not a run directory: it has no {runs.RECORD_FILE}", "name one, such as runs/NAME"
        )
    contents = Contents.of(directory)
    if explained:
        contents.explain()
    picture = contents.loss_picture()
    page = render(contents, picture)
    if len(page.encode()) > LARGEST:  # long texts: without them
        contents.without_texts()
        page = render(contents, picture)
    if picture is not None:
        runs.write_text(directory / runs.LOSS_PICTURE, picture.alone())
        _show_in_card(directory, picture)
    runs.write_text(directory / runs.REPORT_FILE, page)  # last: where it is, all is
    return directory / runs.REPORT_FILE


def _show_in_card(directory: Path, picture: Picture) -> None:
    """Put the picture of the loss behind the table of the model card, once."""
    card = directory / runs.CARD_FILE
    text = card.read_text() if card.is_file() else ""
    table, code = "| metric | value |", "\n```python\n"
    if table in text and code in text and runs.LOSS_PICTURE not in text:
        shown = picture.description.replace("]", "").replace("[", "")
        runs.write_text(card, text.replace(code, f"\n![{shown}]({runs.LOSS_PICTURE})\n{code}", 1))


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
            list(_recipe(recipe.read_text())) if recipe.is_file() else [],
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
                for found in attributions.explain(self.directory / part.folder, asked):
                    rows[found.row]["attribution"] = found
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
        said = [described(line.name + " loss", line.curve) for line in drawn]
        said += [] if level is None else [f"{level[0]}: {figure(level[1])}"]
        said += [] if best is None else [f"best step: {best:,}"]
        return pictures.lines("loss", "Loss over steps", sentence(said), drawn, level, best, scaled=True)

    @property
    def trivial(self) -> dict[str, Any]:
        """Return the trivial answers by metric."""
        found: dict[str, Any] = self.record.get("trivial", {}).get("metrics", {})
        return found

    @property
    def metrics(self) -> dict[str, Any]:
        """Return the metrics at the end; of a run that is not finished those of its last evaluation."""
        last = self.log.evaluations[-1] if self.log.evaluations else {}
        found: dict[str, Any] = self.record.get("metrics") or {k: v for k, v in last.items() if k != "step"}
        return found


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


# ---- words ---------------------------------------------------------------------------------------------------------


def figure(value: Any) -> str:
    """Write a number for people to read."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4f}"


def described(name: str, curve: Curve) -> str:
    """Say in words what a curve shows."""
    (begin, first), (end, last) = curve.first, curve.last
    if curve.entries == 1:
        return f"{name} {figure(last)} at step {end:,}"
    return (
        f"{name} from {figure(first)} at step {begin:,} to {figure(last)} at step {end:,}, "
        f"least {figure(curve.least[1])} at step {curve.least[0]:,}, most {figure(curve.most[1])} at step "
        f"{curve.most[0]:,}"
    )


def sentence(parts: Sequence[str]) -> str:
    """Join what is said to sentences."""
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)


def when(time: Any) -> str:
    """Write a time of a record for people to read."""
    try:
        return f"{datetime.fromtimestamp(runs.as_seconds(time), UTC):%d %B %Y, %H:%M} UTC".lstrip("0")
    except (TypeError, ValueError, OSError):
        return ""


def lasting(seconds: Any) -> str:
    """Write a length of time: 48 s, 2 min 5 s, 3 h 12 min."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def size(num_bytes: Any) -> str:
    """Write a number of bytes."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


# ---- the page ------------------------------------------------------------------------------------------------------


def render(contents: Contents, loss: Picture | None) -> str:
    """Make the page."""
    return fill("page.html", page(contents, loss))


def fill(template: str, shown: Mapping[str, Any]) -> str:
    """Fill a template of this folder with what it shows."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(here),
    )
    made.filters |= {"figure": figure, "thousands": lambda number: f"{number:,}"}
    return made.get_template(template).render(css=(here / "page.css").read_text(), **shown) + "\n"


def page(contents: Contents, loss: Picture | None) -> dict[str, Any]:
    """Return what the template shows."""
    record = contents.record
    return {
        "name": contents.directory.absolute().name,
        "commit": record.get("git_commit"),
        "lead": list(_lead(record)),
        "verdicts": record.get("verdicts", []),
        "results": list(_results(contents)),
        "best": _best(record),
        "learning": list(_learning(contents, loss)),
        "log": contents.log,
        "evaluations": _evaluations(contents.log),
        "samples": _samples(contents.log),
        "rows": contents.settings.rows,
        "explained": EXPLAINED,
        "parts": [_shown_part(part, number, len(contents.parts)) for number, part in enumerate(contents.parts)],
        "data": list(_data(record)),
        "machine": list(_machine(contents)),
        "recipe": contents.recipe,
        "versions": [
            ("llmkit", record.get("llmkit")),
            ("Python", record.get("python")),
            *record.get("packages", {}).items(),
        ],
        "command": " ".join(record.get("command", [])),
    }


def _lead(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what comes first: the facts of a run in a few words."""
    status = {"finished": "finished", "running": "not finished", "failed": "failed"}
    yield "state", status.get(record.get("status", ""), record.get("status", "unknown"))
    if problem := record.get("problem"):
        yield "problem", str(problem)
    if task := record.get("task"):
        yield "task", task
    if "finished" in record and (ended := when(record["finished"])):
        yield "ended", ended
    if "seconds" in record:
        yield "time", lasting(record["seconds"])
    if "steps" in record:
        yield "steps", f"{record['steps']:,}"
    if "parameters" in record:
        trained = record.get("trainable_parameters", record["parameters"])
        part = "" if trained == record["parameters"] else f", {trained:,} trained"
        yield "parameters", f"{record['parameters']:,}{part}"
    if "device" in record:
        count = record.get("processes", 1)
        yield "device", f"{record['device']}, {record.get('precision', '')}" + (f", {count} processes" * (count > 1))


def _results(contents: Contents) -> Iterator[dict[str, Any]]:
    """Yield each metric with the trivial answer's, and the interval of the difference."""
    metrics, trivial = contents.metrics, contents.trivial
    if "last_train_loss" in metrics:
        steps = int(metrics.get("last_train_loss_steps", 1))
        name = "training loss of the last step" if steps == 1 else f"training loss of the last {steps:,} steps"
        yield {"name": name, "value": figure(float(metrics["last_train_loss"])), "answer": "", "trivial": "", "by": ""}
    for key, value in evaluation_metrics(metrics).items():
        about = trivial.get(key, {})
        low, high = about.get("better_by", (None, None))
        by = "" if low is None else f"{low:+.4f} to {high:+.4f}"
        yield {
            "name": key,
            "value": figure(float(value)) if isinstance(value, int | float) else str(value),
            "answer": about.get("answer", ""),
            "trivial": figure(float(about["value"])) if about else "",
            "by": by,
        }


def _best(record: Mapping[str, Any]) -> str:
    best = record.get("best")
    if not best:
        return ""
    kept = "The finished model has its weights." if best["kept"] else "The finished model has the last weights."
    return f"Best at step {best['step']:,}, by {best['metric']} {figure(best['value'])}. {kept}"


def _learning(contents: Contents, loss: Picture | None) -> Iterator[Picture]:
    """Yield the pictures over steps: loss, metrics, learning rate, gradient norm, speed."""
    if loss is not None:
        yield loss
    log, trivial = contents.log, contents.trivial
    several = [key for key, curve in log.curves.items() if key.startswith("eval_") and len(curve.steps) > 1]
    for number, key in enumerate([key for key in several if key != "eval_loss"][:CURVES]):
        about = trivial.get(key)
        level = None if about is None else (about["answer"], about["value"])
        said = [described(key, log.curves[key])] + ([f"{level[0]}: {figure(level[1])}"] if level else [])
        lines = [Line("evaluation", log.curves[key], True)]
        yield pictures.lines(f"metric{number}", key, sentence(said), lines, level)
    for number, key in enumerate(key for key in log.curves if key in TITLES or key.endswith("_per_second")):
        if not key.startswith("eval_"):
            title = TITLES.get(key, key.removesuffix("_per_second").capitalize() + " a second")
            shows = sentence([described(title, log.curves[key])])
            lines = [Line(title, log.curves[key])]
            yield pictures.lines(f"curve{number}", title, shows, lines, scaled=key == "grad_norm")


def _evaluations(log: Log) -> dict[str, Any]:
    """Return the table of all evaluations, of many those at even distances."""
    keys = list(dict.fromkeys(key for each in log.evaluations for key in each if key != "step"))
    chosen = log.evaluations
    if len(chosen) > 50:
        chosen = [chosen[round(i * (len(chosen) - 1) / 49)] for i in range(50)]
    rows = [[f"{each['step']:,}", *(figure(each[key]) if key in each else "" for key in keys)] for each in chosen]
    return {"keys": [key.removeprefix("eval_") for key in keys], "rows": rows, "of": len(log.evaluations)}


def _samples(log: Log) -> list[dict[str, Any]]:
    """Return the samples through training, of many those at even distances: step, and texts with their prompts."""
    chosen = log.samples
    if len(chosen) > SHOWN_SAMPLES:
        last = len(chosen) - 1
        chosen = [chosen[round(i * last / (SHOWN_SAMPLES - 1))] for i in range(SHOWN_SAMPLES)]
    return [
        {
            "step": f"{step:,}",
            "texts": [tuple(cut(str(each.get(key, ""))) for key in ("prompt", "text", "target")) for each in samples],
        }
        for step, samples in chosen
    ]


def cut(text: str, most: int = SHOWN_TEXT) -> str:
    """Shorten a text, and write control characters so that HTML may hold them."""
    shown = text if len(text) <= most else f"{text[:most]} [...]"
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", lambda m: f"\\x{ord(m[0]):02x}", shown)


# ---- the rows that were evaluated ----------------------------------------------------------------------------------


def _shown_part(part: Part, number: int, of: int) -> dict[str, Any]:
    """Return what the page shows of one part of the evaluated data."""
    scores = part.scores
    shown = part.by_class()
    table = [(cut(name, 80), *scores.of[name], scores.actual[name]) for name in shown]
    if table:
        total = sum(scores.actual.values())
        table += [(f"mean of {len(part.classes)}", *scores.mean, total), ("all together", *scores.together, total)]
    return {
        "name": part.name,
        "heading": f": {part.name}" if of > 1 else "",
        "rows": part.rows,
        "wrong": part.wrong,
        "unit": part.unit,
        "table": [(name, *map(figure, (float(p), float(r), float(f))), f"{n:,}", f) for name, p, r, f, n in table],
        "left": len(part.classes) - len(shown),
        "confusion": _confusion(part),
        "calibration": _calibration(part, number),
        "pictures": list(_spread(part, number)),
        "task": part.task,
        "worst": [_mistake(row) for row in part.worst],
        "marked": any("attribution" in row for row in part.worst),
        "mistakes": part.wrong is not None,
        "order": ORDER.get(part.task, "the worst first"),
    }


def _confusion(part: Part) -> dict[str, Any] | None:
    found = part.confusion()
    if found is None:
        return None
    names, cells = found
    shown = ["(none)" if name is None else cut(name, 40) for name in names]
    rows = []
    for i, (name, counts) in enumerate(zip(shown, cells, strict=True)):
        total = max(1, sum(counts))
        rows.append((name, [(f"{count:,}", round(100 * count / total), i == j) for j, count in enumerate(counts)]))
    return {"names": shown, "rows": rows, "part": evaluation.OTHERS in names, "of": len(part.classes)}


def _calibration(part: Part, number: int) -> dict[str, Any] | None:
    found = part.calibration()
    if found is None:
        return None
    error, bins = found
    several = part.task == "text-classification" and part.wrong is not None and len(part.scored) != part.rows
    labels = (
        ("probability of a class", "share that has it") if several else ("probability of the answer", "share right")
    )
    said = sentence(
        [f"expected calibration error {error:.4f}, over {len(part.scored):,} probabilities"]
        + [
            f"of {quantity(int(each['rows']), 'answer')} with a probability of {each['from']:.1f} to {each['to']:.1f}, "
            f"on average {each['confidence']:.2f}, {each['accuracy']:.1%} are right"
            for each in bins
        ]
    )
    picture = pictures.reliability(f"calibration{number}", "Calibration", said, bins, labels)
    rows = [
        (f"{b['from']:.1f} to {b['to']:.1f}", f"{b['rows']:,}", f"{b['confidence']:.4f}", f"{b['accuracy']:.4f}")
        for b in bins
    ]
    return {"error": f"{error:.4f}", "picture": picture, "rows": rows, "labels": labels}


def _spread(part: Part, number: int) -> Iterator[Picture]:
    """Yield pictures of figures that rows have: a regression's values, the scores of answers and texts, losses."""
    import numpy as np

    if part.numbers:
        truth, found = np.array(part.numbers).T
        said = sentence(
            [
                f"true values from {figure(float(truth.min()))} to {figure(float(truth.max()))}",
                f"predicted ones from {figure(float(found.min()))} to {figure(float(found.max()))}",
                f"they differ by {figure(float(np.abs(found - truth).mean()))} on average",
            ]
        )
        yield pictures.values(f"values{number}", "Predicted and true values", said, truth, found)
    spread = dict(part.spread)
    if not spread and not part.classes and not part.numbers and part.wrong is None:
        spread = {"loss": part.losses}
    for key, values in spread.items():
        if not values:
            continue
        counts, edges = np.histogram(values, bins=20)
        middle = [float(np.quantile(values, share)) for share in (0.05, 0.5, 0.95)]
        title = evaluation.SPREAD.get(key, "Loss of a row")
        said = sentence(
            [
                f"{title} of {quantity(len(values), 'row')}",
                "half up to {1:.4g}, 5 % up to {0:.4g}, 95 % up to {2:.4g}".format(*middle),
            ]
        )
        yield pictures.bars(f"{key}{number}", title, said, edges.tolist(), counts.tolist(), key)


def _mistake(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of the worst rows: texts, truth, prediction and figures."""
    figures = {key: value for key, value in row.items() if key not in NO_FIGURES and value is not None}
    sides = row.get("true_text", row.get("truth")), row.get("text" if "true_text" in row else "prediction")
    found = row.get("attribution")
    return {
        "number": row["worst"],
        "row": f"{row['row'] + 1:,}",
        "texts": [(name, [(cut(_text(value)), 0.0)]) for name, value in row.get("columns", {}).items()]
        if found is None
        else _marked(found, list(row["columns"])),
        **_answer(*sides, judged="right" in row),
        "figures": [(key, f"{v:.4g}" if isinstance(v, float) else figure(v)) for key, v in figures.items()],
        "explained": None if found is None else cut(found.explained or "no answer", 80),
        "words": [] if found is None else _most(found),
        "gap": 0.0 if found is None else found.gap,
    }


def _marked(found: Any, names: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return the texts that a model read, each with a name, in pieces: text, and how much it decided (-1 to 1)."""
    most = max((abs(word.score) for word in found.words), default=0.0) or 1.0
    texts = []
    for number, text in enumerate(found.texts):
        pieces, end = list[tuple[str, float]](), 0
        for word in found.words:
            share = word.score / most
            if word.part == number and abs(share) >= LEAST_SHARE and word.begin < SHOWN_TEXT:
                pieces += [(cut(text[end : word.begin]), 0.0), (cut(word.text), share)]
                end = word.end
        pieces.append((cut(text[end:], max(0, SHOWN_TEXT - end)), 0.0))
        name = names[number] if len(names) == len(found.texts) else ""
        texts.append((name, [piece for piece in pieces if piece[0]]))
    return texts


def _most(found: Any) -> list[tuple[str, str]]:
    """Return the words that decided most, with their scores."""
    words = sorted(found.words, key=lambda word: -abs(word.score))[:NAMED_WORDS]
    return [(f"“{cut(word.text, 40)}”", f"{word.score:+.3f}") for word in words]


def _answer(truth: Any, found: Any, judged: bool) -> dict[str, str | None]:
    """Return the truth and the prediction as text; of several labels or entities only those that differ."""
    if judged and isinstance(truth, list) and isinstance(found, list):
        sides = [Counter(map(_text, side)) for side in (truth, found)]
        both = sides[0] & sides[1]
        missed, wrong = ([*(side - both).elements()] for side in sides)
        if len(truth) == len(found) and not isinstance((truth or [""])[0], Mapping) and len(missed) == 0:
            missed, wrong = [*map(_text, truth)], [*map(_text, found)]  # in another order
        return {"truth": cut(", ".join(missed), 400), "prediction": cut(", ".join(wrong), 400)}
    if judged and isinstance(truth, list):  # answers that count as right
        truth = " / ".join(map(_text, truth))
    shown = {"truth": truth, "prediction": found}
    return {key: None if value is None else cut(_text(value), 400) for key, value in shown.items()}


def _text(value: Any) -> str:
    """Write a value of a row as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if value.keys() == {"text", "label"}:
            return f"{value['text']} ({value['label']})"
        if "content" in value:
            return f"{value.get('role', '')}: {value['content']}"
        return ", ".join(f"{key}: {_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        if not value:
            return "none"
        turns = any(isinstance(each, Mapping) and "content" in each for each in value)
        joined = "\n" if turns else ", " if any(isinstance(each, Mapping) for each in value) else " "
        return joined.join(map(_text, value))
    return "" if value is None else figure(value)


# ---- data, machine -------------------------------------------------------------------------------------------------

# What the record says of a part of the data, and what it is called here.
ROWS = {
    "documents": "documents",
    "rows": "rows",
    "examples": "windows or examples",
    "blocks": "blocks",
    "tokens": "tokens",
    "bytes": "bytes",
    "tail": "tokens at the end that are left out",
    "truncated_rows": "rows cut off",
    "truncated_tokens": "tokens cut off",
    "empty_rows": "rows without text",
    "duplicate_rows": "rows that repeat an earlier one",
    "unlearned_rows": "rows that teach nothing",
    "unknown_label_rows": "rows with a label that the model does not know",
    "rows_also_in_train": "rows that are in the training data too",
    "unknown": "share of unknown tokens",
}


def _data(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each data set: of several tasks or sources each."""
    sets: dict[str, Mapping[str, Any]] = {}
    for name, of_task in record.get("tasks", {}).items():
        sets[name] = of_task.get("data", {})
    data = record.get("data", {})
    if "fingerprint" in data:
        sets[""] = data
    else:
        sets |= {name: about for name, about in data.items() if isinstance(about, dict) and "fingerprint" in about}
    for number, (name, about) in enumerate(sets.items()):
        parts = {
            part: each
            for part, each in about.items()
            if isinstance(each, dict) and ("rows" in each or "documents" in each)
        }
        rows = [
            (said, [figure(each[key]) if key in each else "" for each in parts.values()])
            for key, said in ROWS.items()
            if any(each.get(key) for each in parts.values())
        ]
        if any("lengths" in each for each in parts.values()):
            rows += [
                (f"tokens a row, {said}", [figure(each.get("lengths", {}).get(key, "")) for each in parts.values()])
                for key, said in (("min", "least"), ("50%", "median"), ("95%", "95 % up to"), ("max", "most"))
            ]
        for key, said in (("skipped", "rows left out"), ("mended", "rows mended"), ("left_out", "left out")):
            rows += list(_counted(said, about.get(key), list(parts)))
        yield {
            "name": name,
            "parts": list(parts),
            "rows": rows,
            "pictures": list(_lengths(parts, f"lengths{number}")),
            "labels": [_labels(part, each) for part, each in parts.items() if each.get("balance")],
        }


def _counted(said: str, counts: Any, parts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a row for each kind of what was left out or mended, with a count for each part."""
    if not isinstance(counts, Mapping):
        return
    by_part = {part: counts[part] for part in parts if isinstance(counts.get(part), Mapping)}
    for kind in dict.fromkeys(kind for each in by_part.values() for kind in each):
        yield f"{said}: {kind}", [figure(by_part.get(part, {}).get(kind, "")) for part in parts]


def _lengths(parts: Mapping[str, Mapping[str, Any]], name: str) -> Iterator[Picture]:
    for part, about in parts.items():
        found = about.get("length_histogram")
        if not found or sum(found["counts"]) < 2 or len(found["counts"]) < 2:
            continue
        unit = "row" if "rows" in about else "document"
        edges, counts = found["edges"], found["counts"]
        total, seen, half = sum(counts), 0, edges[-1]
        for edge, count in zip(edges[1:], counts, strict=True):
            seen += count
            if 2 * seen >= total:
                half = edge - 1
                break
        fullest = max(range(len(counts)), key=counts.__getitem__)
        said = sentence(
            [
                f"{quantity(total, unit)} of {edges[0]:,} to {edges[-1] - 1:,} tokens, half up to {half:,} or so",
                f"most, {counts[fullest]:,}, have {edges[fullest]:,} to {edges[fullest + 1] - 1:,}",
            ]
        )
        yield pictures.bars(f"{name}-{part}", f"Tokens a {unit}: {part}", said, edges, counts, "tokens")


def _labels(part: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels of a part: bars, or the range of values."""
    balance = about["balance"]
    if any(isinstance(value, float) for value in balance.values()):
        return {"part": part, "bars": [], "range": [(key, figure(value)) for key, value in balance.items()]}
    listed = list(evaluation.bars(balance))
    most = max((count for _, count in listed), default=0) or 1
    rows = max(1, about.get("rows", sum(balance.values())))
    bars = [(cut(str(name), 60), f"{n:,}", f"{n / rows:.1%}", round(100 * n / most, 1)) for name, n in listed]
    return {"part": part, "bars": bars, "range": []}


def _machine(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield speed, memory and what was switched on."""
    record, metrics = contents.record, contents.record.get("metrics", {})
    for key, name in (
        ("train_tokens_per_second", "tokens a second"),
        ("train_samples_per_second", "examples a second"),
        ("train_steps_per_second", "steps a second"),
    ):
        if key in metrics:
            yield f"training, {name}", f"{metrics[key]:,.4g}"
    if "train_runtime" in metrics:
        yield "training", lasting(metrics["train_runtime"])
    if metrics.get("saving_seconds"):
        yield "saving of checkpoints", lasting(metrics["saving_seconds"])
    if "seconds" in record:
        yield "whole run", lasting(record["seconds"])
    if "peak_memory_bytes" in metrics:
        yield "most memory", size(metrics["peak_memory_bytes"])
    if metrics.get("total_flos"):
        yield "floating point operations", f"{metrics['total_flos']:.3g}"
    machine = record.get("machine", {})
    yield from ((key, str(value)) for key, value in machine.items() if value)
    for key, value in record.get("speed", {}).items():
        if value not in (None, False):
            yield key.replace("_", " "), "on" if value is True else str(value)
