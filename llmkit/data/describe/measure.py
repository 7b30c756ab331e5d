"""Count the labels of rows, and the words of texts."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmkit.data.display import counted
from llmkit.data.rows import labels
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.screening import Screened
from llmkit.data.words import without_blanks, words
from llmkit.recipe.data_tables import ClassificationData, RowData


def label_counts(data: RowData, columns: Mapping[str, str], screened: Screened) -> str:
    """Count the labels, as a run names them; raise UserError as it would for a label that cannot be used."""
    targets, rows = screened.targets, len(screened.targets)
    if isinstance(data, ClassificationData):
        encoded = Encoded(screened.rows, targets=list(targets))
        spec = labels.resolve_labels(data, columns, encoded, {}, SimpleNamespace(id2label=None, num_labels=2), False)
        assert encoded.labels is not None
        if spec.problem_type == labels.REGRESSION:
            least, most = encoded.labels.min(), encoded.labels.max()
            return f"values {least:g} to {most:g}, mean {encoded.labels.mean():.3g}"
        numbers = labels.counts_of(encoded.labels, spec).tolist()
        counts = Counter(dict(zip(spec.names, map(int, numbers), strict=True)))
    elif any(isinstance(target, bool) for target in targets):
        counts = Counter("answered" if target else "without an answer" for target in targets)
    else:
        names = next((screened.rows.class_names[c] for c in columns.values() if c in screened.rows.class_names), ())
        each = (target if isinstance(target, list | tuple) else [target] for target in targets if target is not None)
        counts = Counter(
            str(names[one]) if isinstance(one, int) and one < len(names) else str(one)
            for many in each
            for one in set(map(_hashable, many))
        )
        if len(counts) > max(50, rows / 10):
            return ""
    return counted(counts, rows)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else str(value)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(strings, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(strings, value))


def word_counts(texts_of_rows: Iterator[Iterator[str]]) -> str:
    """Say how many words texts have; of scripts without blanks, how many characters."""
    numbers, alone = list[int](), 0
    for texts in texts_of_rows:
        text = " ".join(texts)
        number = len(words(text))
        alone += without_blanks(text, number)
        numbers.append(number)
    if not numbers:
        return ""
    least, half, most, longest = np.quantile(numbers, [0, 0.5, 0.95, 1]).round().astype(int).tolist()
    unit = "characters" if 2 * alone > len(numbers) else "words"
    if least == longest:
        return f"{longest:,} {unit if longest != 1 else unit[:-1]} each"
    return f"{least:,} to {longest:,} {unit}, median {half:,}, 95% up to {most:,}"
