"""The figures of a report that set errors against the cost of training: its time, its compute."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from sdnet.analysis.figure_data import Point
from sdnet.analysis.figure_style import (
    MARKERS,
    MARKS,
    Style,
    bars,
    legend,
    save,
    scale,
    shade,
    with_n,
)

TIME = ("training time ({})", ((3600, "hours"), (60, "minutes"), (1, "seconds")))
MACS = (*((10.0**n, f"$10^{{{n}}}$") for n in (18, 15, 12, 9, 6)), (1.0, "1"))
NUMBERS = "numbers are p_L"
COMPUTE = ("multiply-adds of training ({}, forward passes)", MACS)


def plot_time(points: Sequence[Point], title: str, style: Style, stem: Path) -> Path:
    """Test error against the time of training."""
    return _plot(points, *TIME, title, style, stem)


def plot_compute(points: Sequence[Point], title: str, style: Style, stem: Path) -> Path:
    """Test error against the multiply-adds of training, from none on: equal ones look equal."""
    return _plot(points, *COMPUTE, title, style, stem, from_zero=True)


def _plot(
    points: Sequence[Point],
    name: str,
    units: Sequence[tuple[float, str]],
    title: str,
    style: Style,
    stem: Path,
    from_zero: bool = False,
) -> Path:
    """Test error against a cost, a marker for each schedule, numbers and colours p_L.

    A thin line goes along p_L to constant depth, where that is a schedule's p_L = 1. Bars go from
    the lowest to the highest seed.
    """
    most = max(point.cost.mean for point in points)
    unit, of_unit = next(item for item in units if most >= 2 * item[0] or item[0] == 1)
    p_L = [point.p_L for point in points if point.p_L is not None and not point.is_constant]
    told_apart = len(set(p_L)) > 1
    with plt.rc_context(style.rc):
        figure, axes = plt.subplots(figsize=style.panel, layout="constrained")
        entries: dict[str, Any] = {}
        for i, series in enumerate(dict.fromkeys(point.series for point in points)):
            inside = [point for point in points if point.series == series]
            marker = MARKERS[i % len(MARKERS)]
            for point in inside:
                color = shade(point.p_L, point.is_constant, p_L, i)
                axes.errorbar(
                    [point.cost.mean / unit],
                    [point.error.mean],
                    yerr=bars([point.error]),
                    xerr=bars([point.cost], unit),
                    color=color,
                    marker=marker,
                    linestyle="",
                    **MARKS,
                )
            neutral = "0.4" if told_apart and not inside[0].is_constant else color
            entries[with_n(series, [point.error for point in inside])] = Line2D(
                [], [], color=neutral, marker=marker, markersize=5, linestyle=""
            )
            path = inside + [point for point in points if series in point.joins]
            ends = ([p.cost.mean / unit for p in path], [p.error.mean for p in path])
            axes.plot(*ends, color="0.7", linewidth=0.6, zorder=1)
        axes.set(xlabel=name.format(of_unit), ylabel="test error (%)")
        axes.margins(0.1)
        if from_zero:
            axes.set_xlim(0, 1.15 * most / unit)
        scale(axes, [point.error.mean for point in points])
        named = ", ".join(filter(None, [title, NUMBERS if p_L else ""]))
        legend(figure, entries, named, any(point.error.n > 1 for point in points))
        _label(axes, points, unit)
        return save(figure, stem)


def _label(axes: Axes, points: Sequence[Point], unit: float) -> None:
    """Writes p_L beside each point where it covers no point, no bar and no other label."""
    axes.figure.draw_without_rendering()  # sets the layout
    taken = [box for point in points for box in _covered(axes, point, unit)]
    offsets = [
        (s * x, t * y) for x, y in ((5, 3), (3, 7), (9, 6)) for s in (1, -1) for t in (1, -1)
    ]
    for point in points:
        labelled = point.p_L is not None and not point.is_constant
        tried = []
        for dx, dy in offsets if labelled else ():
            note = axes.annotate(
                f"{point.p_L:g}",
                (point.cost.mean / unit, point.error.mean),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                va="bottom" if dy > 0 else "top",
                fontsize="x-small",
            )
            box = note.get_window_extent()
            tried.append((sum(box.overlaps(other) for other in taken), len(tried), note, box))
            note.set_visible(False)
        if tried:
            _, _, note, box = min(tried)  # the first of those with the fewest overlaps
            note.set_visible(True)
            taken.append(box)


def _covered(axes: Axes, point: Point, unit: float) -> list[Bbox]:
    """Where a point's marker and bars are, in pixels of the figure."""
    x, y = point.cost, point.error
    ends = [
        [(x.low / unit, y.mean), (x.high / unit, y.mean)],
        [(x.mean / unit, max(y.low, 1e-9)), (x.mean / unit, y.high)],
    ]
    return [Bbox(axes.transData.transform(pair)).padded(5) for pair in ends]
