"""Write numbers, times and texts for the people who read a report."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llmkit.reports.curves import Curve
from llmkit.runs import shape

SHOWN_TEXT = 800  # characters of a text


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
        return f"{datetime.fromtimestamp(shape.as_seconds(time), UTC):%d %B %Y, %H:%M} UTC".lstrip("0")
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


def cut(text: str, most: int = SHOWN_TEXT) -> str:
    """Shorten a text, and write control characters so that HTML may hold them."""
    shown = text if len(text) <= most else f"{text[:most]} [...]"
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", lambda m: f"\\x{ord(m[0]):02x}", shown)
