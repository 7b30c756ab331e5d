"""Draw pictures as SVG that follows the page: its font, its colours in light and dark, a title and a description.

matplotlib draws; `_finish` then makes of its colours the page's variables, of its text the page's font, and gives each
picture ids of its own.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import numpy as np

from llmkit.data.display import cut
from llmkit.reports.curves import Curve

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What is drawn in these colours gets the page's; the values are those of a picture that stands alone.
INK, GRID, TRAIN, EVAL, FILL = "#010203", "#020304", "#030405", "#040506", "#050607"
# Of the lines of several runs, which differ by their dashes as well: on, off, ... in points.
RUNS = ("#060708", "#070809", "#08090a", "#090a0b", "#0a0b0c", "#0b0c0d")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (9, 2), (3, 1, 1, 1, 1, 1))
VARIABLES = {INK: "ink", GRID: "grid", TRAIN: "train", EVAL: "eval", FILL: "fill"}
VARIABLES |= {color: f"run{number}" for number, color in enumerate(RUNS)}
ALONE = """\
svg{--ink:#57606a;--grid:#d8dee4;--train:#8793a1;--eval:#0b63b8;--fill:#9dbfe0;font-family:system-ui,sans-serif}
@media (prefers-color-scheme:dark){svg{--ink:#a4b0bc;--grid:#343c45;--train:#7d8996;--eval:#71b7f7;--fill:#31597f}}"""
WIDTH, HEIGHT = 4.4, 2.3  # inches
LEGEND = 16  # points above the axes
FAR = 1.5  # times the range of the curves
LONGEST_NAME = 20  # characters in a legend
FEW = 5  # numbers of a key that are all marked on its axis
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # the one that matplotlib brings, wider than most: what fits in it fits
    "font.size": 8.2,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "ytick.minor.width": 0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.2,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Line:
    """A curve in a picture; `evaluated` ones stand out, and have a dot for each evaluation where these are few.

    `run` is the number of its run where the picture has those of several: its color and its dashes are that run's.
    """

    name: str
    curve: Curve
    evaluated: bool = False
    run: int | None = None

    @property
    def color(self) -> str:
        if self.run is not None:
            return RUNS[self.run % len(RUNS)]
        return EVAL if self.evaluated else TRAIN

    @property
    def dashes(self) -> tuple[float, ...]:
        return () if self.run is None else dashes(self.run)


def dashes(run: int) -> tuple[float, ...]:
    """Return the dashes of a run among several; those of one color differ."""
    return DASHES[(run + run // len(RUNS)) % len(DASHES)]


@dataclass(frozen=True)
class Dot:
    """A trial of a sweep: its value of a key, its mean and that of each seed."""

    x: Any
    mean: float
    values: Sequence[float] = ()
    best: bool = False
    hollow: bool = False  # it was not trained to its end


@dataclass(frozen=True)
class Panel:
    """The trials of a sweep over one key; `log`: its numbers are on a logarithmic scale."""

    key: str
    dots: Sequence[Dot]
    log: bool = False


@dataclass(frozen=True)
class Picture:
    """An SVG, in the page and alone."""

    svg: str
    title: str
    description: str
    note: str = ""  # what stands beside the title
    width: float = WIDTH

    def alone(self) -> str:
        """Return the picture as a file of its own."""
        begin = self.svg.index(">") + 1
        return f"{self.svg[:begin]}<style>{ALONE}</style>{self.svg[begin:]}\n"


def lines(
    name: str,
    title: str,
    description: str,
    curves: Sequence[Line],
    level: tuple[str, float] | None = None,
    mark: int | None = None,
    scaled: bool = False,
) -> Picture:
    """Draw curves over steps; `level` is the value that a trivial answer has, `mark` the best step.

    Lines of several runs have no legend: it would have to be in each picture of a page.

    `scaled`: the scale is logarithmic where values differ by more than a factor of 30.

    A level far from the curves would leave no room for them, and is not drawn.
    """
    low, high = min(line.curve.least[1] for line in curves), max(line.curve.most[1] for line in curves)
    if level is not None and not low - FAR * (high - low) <= level[1] <= high + FAR * (high - low):
        level = None
    several = (len(curves) > 1 or level is not None) and curves[0].run is None

    def draw(axes: Any) -> None:
        for line in curves:
            curve, color = line.curve, line.color
            if curve.low is not None:
                alpha = 0.22 if line.run is None else 0.1
                axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=alpha, linewidth=0)
            few = line.evaluated and len(curve.steps) <= 40
            dots: dict[str, Any] = {"marker": "o", "markersize": 3.2} if few or len(curve.steps) == 1 else {}
            style: Any = (0, line.dashes) if line.dashes else "solid"
            axes.plot(curve.steps, curve.values, color=color, linewidth=1.5, linestyle=style, label=line.name, **dots)
        if level is not None:
            name = level[0] if len(level[0]) <= LONGEST_NAME else f"{level[0][: LONGEST_NAME - 3]}..."
            axes.axhline(level[1], color=INK, linewidth=1, linestyle=(0, (2, 2)), label=name)
        if mark is not None:
            axes.axvline(mark, color=EVAL, linewidth=0.8, linestyle=(0, (1, 2)))
            left = mark < max(line.curve.last[0] for line in curves) / 2
            options = {"ha": "left" if left else "right", "va": "top", "color": EVAL}
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate("best", (mark, 1), (3 if left else -3, -1), **place, **options)
        _scale(axes, scaled and 0 < 30 * low < high and (level is None or level[1] > 0))
        if several:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, handlelength=1.4, columnspacing=1.0)
        axes.set_xlabel("step", loc="right", labelpad=1)

    note = "" if len(curves) > 1 else f"{short(curves[0].curve.first[1])} to {short(curves[0].curve.last[1])}"
    each = max(line.curve.each for line in curves)
    note = "; ".join(
        filter(None, [note, f"each point is the mean of {each} logged, the band their range" * (each > 1)])
    )
    return replace(_picture(name, title, description, draw, legend=several), note=note)


def _scale(axes: Any, log: bool) -> None:
    """Set the axes: steps as whole numbers, few ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if log:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """Write a number in few characters: 0.05, 2e-05, 12k."""
    for size, least, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e4, "k")):
        if abs(value) >= least:
            return f"{value / size:.3g}{letter}"
    if abs(value) >= 1e3:
        return f"{value:,.0f}"
    if not value or abs(value) >= 1e-3:
        return f"{value:.3g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def bars(name: str, title: str, description: str, edges: Sequence[float], counts: Sequence[int], label: str) -> Picture:
    """Draw a histogram."""

    def draw(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.stairs(counts, edges, fill=True, color=FILL, linewidth=0)
        grown = edges[1] - edges[0] < (edges[-1] - edges[-2]) / 2
        if grown:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.grid(visible=False, axis="x", which="both")
        axes.set_xlim(max(edges[0], 0.8) if grown else edges[0], edges[-1])
        axes.set_ylim(0)
        axes.set_xlabel(label, loc="right", labelpad=1)

    return _picture(name, title, description, draw, height=1.6)


def reliability(
    name: str, title: str, description: str, bins: Sequence[Mapping[str, float]], labels: tuple[str, str]
) -> Picture:
    """Draw how often what is said with a probability is right; dots are as large as the bin has rows."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        number = sum(each["rows"] for each in bins)
        x, y = ([each[key] for each in bins] for key in ("confidence", "accuracy"))
        axes.vlines(x, x, y, color=EVAL, linewidth=1, alpha=0.6)
        axes.scatter(x, y, s=[12 + 160 * each["rows"] / number for each in bins], color=EVAL, alpha=0.75, linewidth=0)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(labels[0], loc="right", labelpad=1)
        axes.set_ylabel(labels[1], loc="top", labelpad=3)

    return _picture(name, title, description, draw, width=3.0, height=2.6)


def values(name: str, title: str, description: str, truth: np.ndarray, found: np.ndarray) -> Picture:
    """Draw predicted over true values, counted on a grid: dots are as large as their cell has rows."""

    def draw(axes: Any) -> None:
        cells, x, y = np.histogram2d(truth, found, bins=24)
        i, j = np.nonzero(cells)
        middle = [(edges[:-1] + edges[1:]) / 2 for edges in (x, y)]
        sizes = 6 + 60 * cells[i, j] / cells.max()
        low, high = float(min(truth.min(), found.min())), float(max(truth.max(), found.max()))
        axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.scatter(middle[0][i], middle[1][j], s=sizes, color=EVAL, alpha=0.75, linewidth=0)
        axes.set_xlabel("true value", loc="right", labelpad=1)
        axes.set_ylabel("predicted", loc="top", labelpad=3)

    return _picture(name, title, description, draw, width=3.0, height=2.6)


def over_keys(name: str, title: str, description: str, panels: Sequence[Panel], metric: str) -> Picture:
    """Draw the metric of trials over each key, panel beside panel; what is no number stands in its order."""

    def draw(several: Any) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        for axes, panel in zip(np.atleast_1d(several), panels, strict=True):
            xs = [dot.x for dot in panel.dots]
            numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)
            names = list(dict.fromkeys(str(x) for x in xs))
            for dot in panel.dots:
                x, color = dot.x if numeric else names.index(str(dot.x)), EVAL if dot.best else TRAIN
                if len(dot.values) > 1:
                    axes.vlines(x, min(dot.values), max(dot.values), color=color, linewidth=1, alpha=0.5)
                filled = {"facecolor": "none" if dot.hollow else color, "edgecolor": color}
                axes.scatter([x], [dot.mean], s=26, linewidth=1.2, zorder=3 if dot.best else 2, **filled)
            if panel.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(numticks=4))
                axes.xaxis.set_minor_locator(NullLocator())
            if numeric and len(names) <= FEW:
                axes.set_xticks(sorted(set(xs)))
            elif numeric and not panel.log:
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=all(isinstance(x, int) for x in xs)))
            elif not numeric:
                axes.set_xticks(range(len(names)), [cut(each, 12) for each in names])
                axes.set_xlim(-0.5, len(names) - 0.5)
            if numeric:
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axes.set_xlabel(panel.key, loc="right", labelpad=1)
        np.atleast_1d(several)[0].set_ylabel(metric, loc="top", labelpad=3)

    whole, hollow = f"{metric}; the best is darker", any(dot.hollow for panel in panels for dot in panel.dots)
    note = f"{whole}, hollow dots were stopped on the way" if hollow else whole
    width = max(WIDTH, 2.4 * len(panels))
    return replace(_picture(name, title, description, draw, width=width, panels=len(panels)), note=note)


def _picture(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Any], None],
    width: float = WIDTH,
    height: float = HEIGHT,
    legend: bool = False,
    panels: int = 1,
) -> Picture:
    """Draw into axes of a size in inches, with room for a legend; `name` is that of its ids.

    Of several `panels`, which share a scale, `draw` gets an array of axes.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", name)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that a cache of fonts is being made is nobody's business
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, panels, sharey=True)
        across, up = 72 * width, 72 * height
        top = 6 + LEGEND * legend
        figure.subplots_adjust(left=38 / across, right=1 - 8 / across, bottom=28 / up, top=1 - top / up)
        draw(axes)
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with warnings.catch_warnings():  # text stays text, in the page's font: that matplotlib's lacks it is no matter
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return Picture(_finish(out.getvalue(), name, title, description), title, description, width=width)


def _finish(drawn: str, name: str, title: str, description: str) -> str:
    """Make the page's own of what matplotlib wrote."""
    root = ElementTree.fromstring(drawn)
    used = {link.removeprefix("#") for element in root.iter() if (link := element.get(f"{{{XLINK}}}href"))}
    used |= set(re.findall(r"url\(#([^)]*)\)", drawn))
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{{{SVG}}}style" or child.tag.endswith("}metadata"):
                parent.remove(child)
    for element in root.iter():
        if (own := element.get("id")) is not None:
            if own in used:
                element.set("id", f"{name}-{own}")
            else:
                del element.attrib["id"]
        if (link := element.get(f"{{{XLINK}}}href")) is not None:
            del element.attrib[f"{{{XLINK}}}href"]
            element.set("href", f"#{name}-{link.removeprefix('#')}")
        for key, value in element.attrib.items():
            element.set(key, _themed(re.sub(r"url\(#", f"url(#{name}-", value)))
    box = root.get("viewBox") or ""
    root.attrib.clear()
    named = {"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    root.attrib.update(named)
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        said = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        said.text = text
        root.insert(position, said)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(value: str) -> str:
    """Write the page's variables and font into an attribute."""
    for color, variable in VARIABLES.items():
        value = value.replace(color, f"var(--{variable})")
    value = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", value)
    return re.sub(r"font-family: [^;]*;? ?", "", value)
