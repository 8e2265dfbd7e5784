"""What the figures of a report have in common: type, colours, axes, legends and files."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator, NullFormatter

from sdnet.analysis.figure_data import Curve, Spread
from sdnet.analysis.groups import Group
from sdnet.analysis.plots import STYLE, log_steps


@dataclass(frozen=True)
class Style:
    """The size of type (points) and of figures (inches): of one panel, and of two."""

    font: float
    panel: tuple[float, float]
    two_panels: tuple[float, float]
    columns: int  # that two panels are drawn in

    @property
    def rc(self) -> dict[str, Any]:
        more = {"font.size": self.font, "legend.fontsize": 0.85 * self.font}
        return STYLE | {"savefig.dpi": 200, "pdf.fonttype": 42, "axes.axisbelow": True} | more


STYLES = {
    "screen": Style(10, (5.2, 3.4), (7.5, 3.4), 2),
    "paper": Style(8, (3.3, 2.4), (3.3, 4.4), 1),  # a column of a two-column page
}
# Okabe & Ito (2008), without yellow and black, which is constant depth's: told apart with any
# colour vision
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
CONSTANT = "black"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", "--", ":", "-.", (0, (6, 1)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
MARKS = {"markersize": 5, "elinewidth": 1, "capsize": 2.5}
WIDE = 8  # errors spanning more than this factor are drawn on a log axis
RANGE = "means over n seeds; bars and bands from the lowest to the highest"


def save(figure: Figure, stem: Path) -> Path:
    """Writes PNG and PDF, each beside its place and renamed; returns the PNG's path."""
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
        path = stem.with_name(f"{stem.name}.{suffix}")
        temporary = stem.with_name(f".{stem.name}.{uuid.uuid4().hex}.{suffix}")
        figure.savefig(temporary, metadata=metadata)
        os.replace(temporary, path)
    plt.close(figure)
    return path


def scale(axes: Axes, errors: Sequence[float]) -> None:
    """A log axis where a few bad settings would press the others together."""
    if min(errors) > 0 and max(errors) > WIDE * min(errors):
        axes.set_yscale("log")
        plain_log_ticks(axes)


def plain_log_ticks(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=log_steps(*axes.get_ylim()), numticks=30))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def shade(p_L: float | None, is_constant: bool, every: Sequence[float], series: int) -> Any:
    """Constant depth is black; p_L goes from dark, the lowest, to light; grey is without one.

    Where `every` p_L is the same, the colour is that of the series, by its number.
    """
    if is_constant:
        return CONSTANT
    if len(set(every)) < 2:
        return COLORS[series % len(COLORS)]
    if p_L is None:
        return "0.6"
    ordered = sorted(set(every))
    place = ordered.index(p_L) / (len(ordered) - 1)
    return plt.colormaps["viridis"](0.9 * place)  # 1 would vanish on white


def colors_of(groups: Sequence[Group]) -> list[Any]:
    """A colour for each, that of its curve in a report."""
    others = [g for g in groups if not g.is_baseline]
    p_L = [g.p_L for g in others if g.p_L is not None]
    return [
        CONSTANT if g.is_baseline else shade(g.p_L, False, p_L, others.index(g)) for g in groups
    ]


def curve_styles(found: Sequence[Curve]) -> list[dict[str, Any]]:
    """The look of each: colour by p_L, a dash for each schedule and setting."""
    p_L = [curve.p_L for curve in found if curve.p_L is not None and not curve.is_constant]
    styles = []
    for curve in found:
        alike = [c for c in found if c.is_constant == curve.is_constant]
        series = list(dict.fromkeys(c.series for c in alike))
        index = series.index(curve.series)
        color = shade(curve.p_L, curve.is_constant, p_L, index)
        styles.append({"color": color, "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.3})
    return styles


def legend(figure: Figure, entries: dict[str, Any], title: str, several: bool) -> None:
    """The title and, below it, a legend in as many columns as fit; the figure grows by its height.

    Args:
        several: whether there are several seeds, whose spread is then explained.
    """
    size = plt.rcParams["legend.fontsize"]
    lines = [title, *([RANGE] if several else [])]
    options = {"title": "\n".join(filter(None, lines)), "title_fontsize": size}
    made = fitting_legend(figure, entries, 4, loc="outside upper center", **options)
    box = made.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, box.width + 0.2), height + box.height)


def fitting_legend(figure: Figure, entries: dict[str, Any], most: int, **options: Any) -> Legend:
    """A legend outside of the panels, in as many columns as fit, and at most so many."""
    made = figure.legend(entries.values(), entries.keys(), ncols=most, **options)
    made.get_title().set_parse_math(False)
    if most == 1 or made.get_window_extent().width < 0.98 * figure.bbox.width:
        return made
    made.remove()
    return fitting_legend(figure, entries, most - 1, **options)


def with_n(text: str, several: Sequence[Spread]) -> str:
    """`linear decay (n = 3)`, or `n = 1 to 3` where it differs."""
    low, high = min(s.n for s in several), max(s.n for s in several)
    return f"{text} (n = {low})" if low == high else f"{text} (n = {low} to {high})"


def bars(several: Sequence[Spread], unit: float = 1.0) -> np.ndarray:
    """The lengths of the bars below and above the means, (2, number); none for a single run."""
    ends = [(s.mean - s.low, s.high - s.mean) if s.n > 1 else (np.nan, np.nan) for s in several]
    return np.array(ends).T / unit


def hide_rest(grid: np.ndarray, used: int) -> None:
    """Hides the axes behind the used ones; those above show their ticks in their place."""
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < used)
        if i < used <= i + grid.shape[1]:
            axes.tick_params(labelbottom=True)
