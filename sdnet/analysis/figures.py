"""The figures of a report, each as PNG and PDF."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from sdnet.analysis import figure_telemetry
from sdnet.analysis.figure_data import (
    PAPER_GRID,
    PAPER_NAME,
    PAPER_P_L,
    Curve,
    Grid,
    Line,
    Spread,
    curves,
    depth_grids,
    p_L_lines,
    points_by,
    title_of,
)
from sdnet.analysis.figure_style import (
    COLORS,
    CONSTANT,
    DASHES,
    MARKERS,
    MARKS,
    STYLES,
    Style,
    bars,
    curve_styles,
    hide_rest,
    legend,
    plain_log_ticks,
    save,
    scale,
    with_n,
)
from sdnet.analysis.figure_time import plot_compute, plot_time
from sdnet.analysis.groups import Group

NAMES = ("p_L", "heatmap", "curves", "time", "compute", "gradients")
MANY = 8  # more curves than that are drawn without bands
LEAST_ROWS = 5  # of a heat map, which the text beside it is as long as
CROWDED = 4  # more lines than that, of several settings, are drawn in a panel for each


def plot_p_L(
    lines: Sequence[Line],
    levels: dict[str, Spread],
    paper: bool,
    title: str,
    style: Style,
    stem: Path,
) -> Path:
    """Test error against p_L, a line per schedule, constant depth dashed: Figure 8 left.

    Bars and the band go from the lowest to the highest seed; the lines stand a little apart, so
    that their bars can be told apart. More than four lines are drawn in a panel for each of the
    other settings.

    Args:
        levels: the test error at constant depth by `setting`.
        paper: whether the paper's points are drawn as well.
        title: what all runs share.
        stem: the path without its suffix.
    """
    settings = list(dict.fromkeys(line.setting for line in lines))
    panels = [[s] for s in settings] if len(lines) > CROWDED else [settings]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width, height = style.panel
    size = style.panel if len(panels) == 1 else (0.6 * width * columns, 0.76 * height * rows)
    with plt.rc_context(style.rc):
        figure, grid = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True
        )
        entries: dict[str, Any] = {}
        for axes, inside in zip(grid.flat, panels, strict=False):
            entries |= _p_L_panel(axes, lines, levels, inside, titled=len(panels) > 1)
            if paper:
                entries |= _paper_points(axes)
        hide_rest(grid, len(panels))
        figure.supxlabel("survival probability $p_L$", fontsize="medium")
        figure.supylabel("test error (%)", fontsize="medium")
        every = [*(s for line in lines for s in line.errors), *levels.values()]
        legend(figure, entries, title, any(s.n > 1 for s in every))
        return save(figure, stem)


def _p_L_panel(
    axes: Axes,
    lines: Sequence[Line],
    levels: dict[str, Spread],
    settings: Sequence[str],
    titled: bool,
) -> dict[str, Any]:
    """Draws the lines of these settings; returns the legend's entries by their texts."""
    entries: dict[str, Any] = {}
    labels = list(dict.fromkeys(line.label for line in lines))
    several = len(settings) > 1
    inside = [line for line in lines if line.setting in settings]
    for i, line in enumerate(inside):
        shift = 0.006 * (i - (len(inside) - 1) / 2)
        index = settings.index(line.setting) if several else labels.index(line.label)
        text = ", ".join(filter(None, [line.label, "" if titled else line.setting]))
        entries[with_n(text, line.errors)] = axes.errorbar(
            [p + shift for p in line.p_L],
            [s.mean for s in line.errors],
            bars(line.errors),
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[labels.index(line.label) % len(MARKERS)],
            linewidth=1.4,
            **MARKS,
        )
    known = [setting for setting in settings if setting in levels]
    for i, setting in enumerate(known):
        level = levels[setting]
        dash = DASHES[1 + i % (len(DASHES) - 1)]
        line = axes.axhline(level.mean, color=CONSTANT, linestyle=dash, linewidth=1.2, zorder=1)
        handles = [line]
        if level.n > 1:
            look = {"color": CONSTANT, "alpha": 0.12, "linewidth": 0}
            handles.insert(0, axes.axhspan(level.low, level.high, **look))
        text = "constant depth" if titled or not setting else f"constant depth, {setting}"
        text = text if titled else f"{text}, {level.mean:.2f} %"
        entries[with_n(text, [level])] = tuple(handles)
    if titled:
        axes.set_title(settings[0], fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    scale(axes, [s.mean for line in inside for s in line.errors])
    return entries


def _paper_points(axes: Axes) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for (label, (p_L, error)), marker in zip(PAPER_P_L.items(), MARKERS, strict=False):
        (entries[f"{PAPER_NAME}, {label}"],) = axes.plot(
            *(p_L, error), marker, fillstyle="none", color="0.5", markersize=5, zorder=1.5
        )
    return entries


def plot_heatmap(grids: Sequence[Grid], paper: bool, title: str, style: Style, stem: Path) -> Path:
    """Mean test error for p_L x depth, printed in its cell, a panel per schedule: Figure 8 right.

    The panels of the report share one colour scale; that of the paper has its own.
    """
    panels = [*grids, PAPER_GRID] if paper else list(grids)
    values = [v for grid in grids for row in grid.errors for v in row if v is not None]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = max(0.55 * max(len(grid.depths) for grid in panels) + 0.5, 2.4)
    height = 0.32 * max(*(len(grid.p_L) for grid in panels), LEAST_ROWS) + 0.6
    with plt.rc_context(style.rc | {"axes.grid": False}):
        figure, axes_grid = plt.subplots(
            *(rows, columns),
            figsize=(width * columns + 0.3, height * rows + 0.3),
            layout="constrained",
            squeeze=False,
        )
        for axes, grid in zip(axes_grid.flat, panels, strict=False):
            own = [v for row in grid.errors for v in row if v is not None]
            limits = own if grid is PAPER_GRID else values
            # a few bad cells must not hide the rest
            norm = LogNorm if 0 < min(limits) < max(limits) else Normalize
            _heatmap_panel(axes, grid, norm(min(limits), max(limits)))
        hide_rest(axes_grid, len(panels))
        figure.supylabel("survival probability $p_L$", fontsize="medium")
        figure.supxlabel("network depth (layers)", fontsize="medium")
        head = ", ".join(filter(None, [title, "test error (%), mean over seeds"]))
        figure.suptitle(head, fontsize="medium", parse_math=False, wrap=True)
        return save(figure, stem)


def _heatmap_panel(axes: Axes, grid: Grid, norm: Normalize) -> None:
    errors = np.array(grid.errors, dtype=float)
    image = axes.imshow(errors, cmap="cividis", norm=norm, aspect="auto")
    for i in range(1, errors.shape[0]):
        axes.axhline(i - 0.5, color="white", linewidth=1)
    for j in range(1, errors.shape[1]):
        axes.axvline(j - 0.5, color="white", linewidth=1)
    for (i, j), value in np.ndenumerate(errors):
        if not math.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            color = "white" if dark else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize="small")
    axes.set_xticks(range(len(grid.depths)), [f"{depth:g}" for depth in grid.depths])
    axes.set_yticks(range(len(grid.p_L)), [f"{p:g}" for p in grid.p_L])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(grid.title, fontsize="small")


def plot_curves(found: Sequence[Curve], title: str, style: Style, stem: Path) -> Path:
    """Test error and training loss (log axis) over the epochs: Figure 3.

    Lines are means over seeds, bands go from the lowest to the highest seed; more than eight curves
    have none. Constant depth is black, the others are coloured by p_L, where it tells them apart,
    with a dash for each schedule and setting.
    """
    many = len(found) > MANY
    with plt.rc_context(style.rc | {"legend.fontsize": (0.7 if many else 0.85) * style.font}):
        rows, columns = (1, 2) if style.columns == 2 else (2, 1)
        figure, both = plt.subplots(rows, columns, figsize=style.two_panels, layout="constrained")
        upper, lower = both
        entries: dict[str, Any] = {}
        for curve, look in zip(found, curve_styles(found), strict=True):
            marker = "o" if len(curve.epochs) == 1 else None
            n = curve.test_error.shape[1]
            for axes, values in ((upper, curve.test_error), (lower, curve.train_loss)):
                (handle,) = axes.plot(curve.epochs, values.mean(1), marker=marker, **look)
                entries.setdefault(f"{curve.label} (n = {n})", handle)
                if n > 1 and not many:
                    band = (curve.epochs, values.min(1), values.max(1))
                    axes.fill_between(*band, color=look["color"], alpha=0.15, linewidth=0)
        upper.set(xlabel="epoch", ylabel="test error (%)")
        scale(upper, [error for curve in found for error in curve.test_error.mean(1)])
        lower.set(xlabel="epoch", ylabel="training loss", yscale="log")
        plain_log_ticks(lower)
        first, last = min(c.epochs[0] for c in found), max(c.epochs[-1] for c in found)
        for axes in both:
            if last > first:
                axes.set_xlim(first, last)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        several = any(curve.test_error.shape[1] > 1 for curve in found) and not many
        legend(figure, entries, title, several)
        return save(figure, stem)


def draw(
    groups: Sequence[Group], out: Path, paper: bool, times_comparable: bool, style: str = "screen"
) -> list[Path]:
    """Draws the figures that apply to the groups into `out` and removes those of before that no
    longer do; returns the paths of the PNG files."""
    drawn = []
    look = (title_of(groups), STYLES[style])
    lines, levels = p_L_lines(groups)
    if lines and len({group.p_L for group in groups if group.p_L is not None}) > 1:
        drawn.append(plot_p_L(lines, levels, paper, *look, out / "p_L"))
    grids = depth_grids(groups)
    if grids:
        drawn.append(plot_heatmap(grids, paper, *look, out / "heatmap"))
    drawn.append(plot_curves(curves(groups), *look, out / "curves"))
    if times_comparable:
        drawn.append(plot_time(points_by("train_seconds", groups), *look, out / "time"))
    counted = all(run.summary.get("training_macs") for group in groups for run in group.runs)
    if counted and len(groups) > 1:
        drawn.append(plot_compute(points_by("training_macs", groups), *look, out / "compute"))
    gradients = figure_telemetry.plot_rows(groups, *look, out / "gradients")
    drawn += [] if gradients is None else [gradients]
    for name in NAMES:
        if out / f"{name}.png" not in drawn:
            for suffix in ("png", "pdf"):
                (out / f"{name}.{suffix}").unlink(missing_ok=True)
    return drawn
