"""The ratios of all works as bars, in SVG."""

from collections.abc import Sequence
from html import escape
from math import log2
from typing import Any

ROW, LEFT, SCALE, BOTTOM = 22, 400, 80, 40  # pixels; SCALE to a doubling
LEAST, MOST = 0.25, 32  # the range of the axis


def picture(records: Sequence[dict[str, Any]]) -> str:
    """How many times as fast as each side llmkit is, on a logarithmic axis; a tick across a bar is what was wanted."""
    bars = [
        (f"{record['work']}, beside {side}", *(faster(found[key], record["less"]) for key in ("ratio", "wanted")))
        for record in records
        for side, found in list(record["sides"].items())[1:]
    ]
    width, height = LEFT + round(at(MOST)) + 60, ROW * (len(bars) + 1) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for doublings in range(round(log2(LEAST)), round(log2(MOST)) + 1):
        x = LEFT + at(2.0**doublings)
        colour = "#444" if doublings == 0 else "#ddd"
        parts.append(f'<path d="M{x:.1f} 4V{height - BOTTOM}" stroke="{colour}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{2.0**doublings:g}</text>')
    parts.append(f'<text x="{LEFT + at(1):.1f}" y="{height - 6}" text-anchor="middle">times as fast as</text>')
    for number, (name, found, wanted) in enumerate(bars):
        y = 8 + ROW * number
        begin, end = sorted((LEFT + at(1), LEFT + at(found)))
        colour = "#2a7" if wanted is None or found >= wanted else "#c63"
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{begin:.1f}" y="{y}" width="{end - begin:.1f}" height="16" fill="{colour}"/>')
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 13}">{found:.2f}</text>')
        if wanted is not None:
            parts.append(f'<path d="M{LEFT + at(wanted):.1f} {y - 2}v20" stroke="black" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def faster(ratio: float | None, less: bool) -> float | None:
    """A ratio of times the other way round."""
    return 1 / ratio if ratio is not None and less else ratio


def at(ratio: float) -> float:
    """Pixels from the left end of the axis."""
    return SCALE * log2(min(max(ratio, LEAST), MOST) / LEAST)
