"""Count whole numbers in a few bins, for records and pictures."""

from typing import Any

import numpy as np

BINS = 30
SKEWED = 8  # times the median: beyond, bins grow with what they hold


def histogram(values: Any) -> dict[str, list[int]]:
    """Count whole numbers (one at least) in bins: bin i holds those from `edges[i]` to below `edges[i + 1]`.

    Bins are of one width, or where few numbers are far above the others grow by a constant factor.
    """
    values = np.asarray(values)
    low, high = int(values.min()), int(values.max())
    if high > SKEWED * max(1.0, float(np.median(values))):
        edges = np.unique(np.geomspace(max(1, low), high + 1, BINS + 1).round().astype(np.int64))
        edges[0] = low
    else:
        width = -(-(high + 1 - low) // BINS)
        edges = np.arange(low, high + 1 + width, width)
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
