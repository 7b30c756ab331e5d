"""Show the rows of the last evaluation: by class, confusions, calibration, the worst and the words that decided."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.errors import quantity
from llmkit.reports import evaluation, pictures
from llmkit.reports.evaluation import Part
from llmkit.reports.formatting import SHOWN_TEXT, cut, figure, sentence
from llmkit.reports.pictures import Picture

LEAST_SHARE = 0.12  # of the word that decides most, below which a word is not marked
NAMED_WORDS = 5
# What a kept row has beside figures.
NO_FIGURES = (
    *("split", "row", "key", "worst", "columns", "labels", "decisions", "right", "attribution", "truth", "prediction"),
    *("scores", "true_text", "text"),
)
# How the worst rows are ordered.
ORDER = {
    "text-classification": "those first of which the model was surest",
    "multiple-choice": "those first of which the model was surest",
    "token-classification": "those with the most errors first",
    "question-answering": "those without a right word first",
    "seq2seq": "the lowest chrF first",
    "chat": "the highest loss first",
}


def rows_section(part: Part, number: int, of: int) -> dict[str, Any]:
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
    confusion = part.confusion()
    if confusion is None:
        return None
    names, cells = confusion
    shown = ["(none)" if name is None else cut(name, 40) for name in names]
    rows = []
    for i, (name, counts) in enumerate(zip(shown, cells, strict=True)):
        total = max(1, sum(counts))
        rows.append((name, [(f"{count:,}", round(100 * count / total), i == j) for j, count in enumerate(counts)]))
    return {"names": shown, "rows": rows, "part": evaluation.OTHERS in names, "of": len(part.classes)}


def _calibration(part: Part, number: int) -> dict[str, Any] | None:
    calibration = part.calibration()
    if calibration is None:
        return None
    error, bins = calibration
    several = part.task == "text-classification" and part.wrong is not None and len(part.scored) != part.rows
    labels = (
        ("probability of a class", "share that has it") if several else ("probability of the answer", "share right")
    )
    description = sentence(
        [f"expected calibration error {error:.4f}, over {len(part.scored):,} probabilities"]
        + [
            f"of {quantity(int(each['rows']), 'answer')} with a probability of {each['from']:.1f} to {each['to']:.1f}, "
            f"on average {each['confidence']:.2f}, {each['accuracy']:.1%} are right"
            for each in bins
        ]
    )
    picture = pictures.reliability(f"calibration{number}", "Calibration", description, bins, labels)
    rows = [
        (f"{b['from']:.1f} to {b['to']:.1f}", f"{b['rows']:,}", f"{b['confidence']:.4f}", f"{b['accuracy']:.4f}")
        for b in bins
    ]
    return {"error": f"{error:.4f}", "picture": picture, "rows": rows, "labels": labels}


def _spread(part: Part, number: int) -> Iterator[Picture]:
    """Yield pictures of figures that rows have: a regression's values, the scores of answers and texts, losses."""
    import numpy as np

    if part.numbers:
        truth, predicted = np.array(part.numbers).T
        description = sentence(
            [
                f"true values from {figure(float(truth.min()))} to {figure(float(truth.max()))}",
                f"predicted ones from {figure(float(predicted.min()))} to {figure(float(predicted.max()))}",
                f"they differ by {figure(float(np.abs(predicted - truth).mean()))} on average",
            ]
        )
        yield pictures.values(f"values{number}", "Predicted and true values", description, truth, predicted)
    spread = dict(part.spread)
    if not spread and not part.classes and not part.numbers and part.wrong is None:
        spread = {"loss": part.losses}
    for key, values in spread.items():
        if not values:
            continue
        counts, edges = np.histogram(values, bins=20)
        middle = [float(np.quantile(values, share)) for share in (0.05, 0.5, 0.95)]
        title = evaluation.SPREAD.get(key, "Loss of a row")
        description = sentence(
            [
                f"{title} of {quantity(len(values), 'row')}",
                "half up to {1:.4g}, 5 % up to {0:.4g}, 95 % up to {2:.4g}".format(*middle),
            ]
        )
        yield pictures.bars(f"{key}{number}", title, description, edges.tolist(), counts.tolist(), key)


def _mistake(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of the worst rows: texts, truth, prediction and figures."""
    figures = {key: value for key, value in row.items() if key not in NO_FIGURES and value is not None}
    sides = row.get("true_text", row.get("truth")), row.get("text" if "true_text" in row else "prediction")
    attribution = row.get("attribution")
    return {
        "number": row["worst"],
        "row": f"{row['row'] + 1:,}",
        "texts": [(name, [(cut(_text(value)), 0.0)]) for name, value in row.get("columns", {}).items()]
        if attribution is None
        else _marked(attribution, list(row["columns"])),
        **_answer(*sides, judged="right" in row),
        "figures": [(key, f"{v:.4g}" if isinstance(v, float) else figure(v)) for key, v in figures.items()],
        "explained": None if attribution is None else cut(attribution.explained or "no answer", 80),
        "words": [] if attribution is None else _most(attribution),
        "gap": 0.0 if attribution is None else attribution.gap,
    }


def _marked(attribution: Any, names: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return the texts that a model read, each with a name, in pieces: text, and how much it decided (-1 to 1)."""
    most = max((abs(word.score) for word in attribution.words), default=0.0) or 1.0
    texts = []
    for number, text in enumerate(attribution.texts):
        pieces, end = list[tuple[str, float]](), 0
        for word in attribution.words:
            share = word.score / most
            if word.part == number and abs(share) >= LEAST_SHARE and word.begin < SHOWN_TEXT:
                pieces += [(cut(text[end : word.begin]), 0.0), (cut(word.text), share)]
                end = word.end
        pieces.append((cut(text[end:], max(0, SHOWN_TEXT - end)), 0.0))
        name = names[number] if len(names) == len(attribution.texts) else ""
        texts.append((name, [piece for piece in pieces if piece[0]]))
    return texts


def _most(attribution: Any) -> list[tuple[str, str]]:
    """Return the words that decided most, with their scores."""
    words = sorted(attribution.words, key=lambda word: -abs(word.score))[:NAMED_WORDS]
    return [(f"“{cut(word.text, 40)}”", f"{word.score:+.3f}") for word in words]


def _answer(truth: Any, prediction: Any, judged: bool) -> dict[str, str | None]:
    """Return the truth and the prediction as text; of several labels or entities only those that differ."""
    if judged and isinstance(truth, list) and isinstance(prediction, list):
        sides = [Counter(map(_text, side)) for side in (truth, prediction)]
        both = sides[0] & sides[1]
        missed, wrong = ([*(side - both).elements()] for side in sides)
        if len(truth) == len(prediction) and not isinstance((truth or [""])[0], Mapping) and len(missed) == 0:
            missed, wrong = [*map(_text, truth)], [*map(_text, prediction)]  # in another order
        return {"truth": cut(", ".join(missed), 400), "prediction": cut(", ".join(wrong), 400)}
    if judged and isinstance(truth, list):  # answers that count as right
        truth = " / ".join(map(_text, truth))
    shown = {"truth": truth, "prediction": prediction}
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
