"""Show the data that a run learned from: counts, what was left out, lengths in tokens, labels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.errors import quantity
from llmkit.reports import evaluation, pictures
from llmkit.reports.formatting import cut, figure, sentence
from llmkit.reports.pictures import Picture

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


def data_section(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
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
            (label, [figure(each[key]) if key in each else "" for each in parts.values()])
            for key, label in ROWS.items()
            if any(each.get(key) for each in parts.values())
        ]
        if any("lengths" in each for each in parts.values()):
            rows += [
                (f"tokens a row, {label}", [figure(each.get("lengths", {}).get(key, "")) for each in parts.values()])
                for key, label in (("min", "least"), ("50%", "median"), ("95%", "95 % up to"), ("max", "most"))
            ]
        for key, label in (("skipped", "rows left out"), ("mended", "rows mended"), ("left_out", "left out")):
            rows += list(_counted(label, about.get(key), list(parts)))
        yield {
            "name": name,
            "parts": list(parts),
            "rows": rows,
            "pictures": list(_lengths(parts, f"lengths{number}")),
            "labels": [_labels(part, each) for part, each in parts.items() if each.get("balance")],
        }


def _counted(label: str, counts: Any, parts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a row for each kind of what was left out or mended, with a count for each part."""
    if not isinstance(counts, Mapping):
        return
    by_part = {part: counts[part] for part in parts if isinstance(counts.get(part), Mapping)}
    for kind in dict.fromkeys(kind for each in by_part.values() for kind in each):
        yield f"{label}: {kind}", [figure(by_part.get(part, {}).get(kind, "")) for part in parts]


def _lengths(parts: Mapping[str, Mapping[str, Any]], name: str) -> Iterator[Picture]:
    for part, about in parts.items():
        histogram = about.get("length_histogram")
        if not histogram or sum(histogram["counts"]) < 2 or len(histogram["counts"]) < 2:
            continue
        unit = "row" if "rows" in about else "document"
        edges, counts = histogram["edges"], histogram["counts"]
        total, seen, half = sum(counts), 0, edges[-1]
        for edge, count in zip(edges[1:], counts, strict=True):
            seen += count
            if 2 * seen >= total:
                half = edge - 1
                break
        fullest = max(range(len(counts)), key=counts.__getitem__)
        description = sentence(
            [
                f"{quantity(total, unit)} of {edges[0]:,} to {edges[-1] - 1:,} tokens, half up to {half:,} or so",
                f"most, {counts[fullest]:,}, have {edges[fullest]:,} to {edges[fullest + 1] - 1:,}",
            ]
        )
        yield pictures.bars(f"{name}-{part}", f"Tokens a {unit}: {part}", description, edges, counts, "tokens")


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
