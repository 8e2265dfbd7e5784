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
from matplotlib.transforms import Bbox

from sdnet.analysis.figure_data import (
    BARS,
    PAPER_GRID,
    PAPER_NAME,
    PAPER_P_L,
    Curve,
    Grid,
    Line,
    Point,
    curves,
    depth_grids,
    p_L_lines,
    time_points,
)
from sdnet.analysis.figure_style import (
    COLORS,
    DASHES,
    MARKERS,
    MARKS,
    PRINT,
    bars,
    hide_rest,
    legend,
    plain_log_ticks,
    save,
    scale,
    title_of,
)
from sdnet.analysis.groups import Group

NAMES = ("p_L", "heatmap", "curves", "time")
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
MANY = len(COLORS)
CROWDED = 4  # more lines than that, of several settings, are drawn in a panel for each


def plot_p_L(
    lines: Sequence[Line],
    levels: dict[str, tuple[float, float | None]],
    paper: bool,
    stem: Path,
) -> Path:
    """Test error against p_L, a line per schedule, constant depth dashed: Figure 8 left.

    Error bars and the band are the std over seeds; the lines stand a little apart, so that their
    bars can be told apart. More than four lines are drawn in a panel for each of the other
    settings.

    Args:
        levels: mean and std at constant depth by `setting`.
        paper: whether the paper's points are drawn as well.
        stem: the path without its suffix.
    """
    settings = list(dict.fromkeys(line.setting for line in lines))
    panels = [[s] for s in settings] if len(lines) > CROWDED else [settings]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (5.2, 3.4) if len(panels) == 1 else (3.1 * columns, 2.6 * rows)
    with plt.rc_context(PRINT):
        figure, grid = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True
        )
        entries: dict[str, Any] = {}
        for axes, inside in zip(grid.flat, panels, strict=False):
            entries |= _p_L_panel(axes, lines, levels, inside, titled=len(panels) > 1)
            if paper:
                entries |= _paper_points(axes)
        hide_rest(grid, len(panels))
        figure.supxlabel("survival probability $p_L$", fontsize=10)
        figure.supylabel("test error (%)", fontsize=10)
        legend(figure, entries, **title_of([BARS] if any(map(_has_bars, lines)) else []))
        return save(figure, stem)


def _has_bars(line: Line) -> bool:
    return any(std is not None for std in line.std)


def _p_L_panel(
    axes: Axes,
    lines: Sequence[Line],
    levels: dict[str, tuple[float, float | None]],
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
        marker = MARKERS[(i if several else index) % len(MARKERS)]
        text = ", ".join(filter(None, [line.label, "" if titled else line.setting]))
        entries[text] = axes.errorbar(
            *([p + shift for p in line.p_L], line.mean, bars(line.std)),
            color=COLORS[index % len(COLORS)],
            marker=marker,
            linewidth=1.4,
            **MARKS,
        )
    for setting in settings:
        if setting in levels:
            color = COLORS[settings.index(setting)] if several else "0.25"
            mean, std = levels[setting]
            handle = axes.axhline(mean, color=color, linestyle="--", linewidth=1.2, zorder=1)
            if std is not None:
                axes.axhspan(mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
            text = "constant depth" if titled or not setting else f"constant depth, {setting}"
            entries[text if titled else f"{text} ({mean:.2f} %)"] = handle
    if titled:
        axes.set_title(settings[0], fontsize=9, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    scale(axes, [error for line in inside for error in line.mean])
    return entries


def _paper_points(axes: Axes) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for (label, (p_L, error)), marker in zip(PAPER_P_L.items(), MARKERS, strict=False):
        (entries[f"{PAPER_NAME}, {label}"],) = axes.plot(
            *(p_L, error), marker, fillstyle="none", color="0.5", markersize=5, zorder=1.5
        )
    return entries


def plot_heatmap(grids: Sequence[Grid], paper: bool, stem: Path) -> Path:
    """Mean test error for p_L x depth, printed in its cell, a panel per schedule: Figure 8 right.

    The panels of the report share one colour scale; that of the paper has its own.
    """
    panels = [*grids, PAPER_GRID] if paper else list(grids)
    values = [v for grid in grids for row in grid.errors for v in row if v is not None]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = max(0.55 * max(len(grid.depths) for grid in panels) + 0.5, 2.4)
    height = 0.32 * max(len(grid.p_L) for grid in panels) + 0.6
    with plt.rc_context(PRINT | {"axes.grid": False}):
        figure, axes_grid = plt.subplots(
            *(rows, columns),
            figsize=(width * columns + 0.3, height * rows + 0.3),
            layout="constrained",
            squeeze=False,
        )
        for axes, grid in zip(axes_grid.flat, panels, strict=False):
            own = [v for row in grid.errors for v in row if v is not None]
            scale = own if grid is PAPER_GRID else values
            norm = (
                LogNorm if min(scale) > 0 else Normalize
            )  # a few bad cells must not hide the rest
            _heatmap_panel(axes, grid, norm(min(scale), max(scale)))
        hide_rest(axes_grid, len(panels))
        figure.supylabel("survival probability $p_L$", fontsize=10)
        figure.supxlabel("network depth (layers)", fontsize=10)
        figure.suptitle("test error (%)", fontsize=10)
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
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(grid.depths)), [f"{depth:g}" for depth in grid.depths])
    axes.set_yticks(range(len(grid.p_L)), [f"{p:g}" for p in grid.p_L])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(grid.title, fontsize=9, parse_math=False)


def plot_curves(found: Sequence[Curve], stem: Path) -> Path:
    """Test error and training loss (log axis) over the epochs: Figure 3.

    Lines are means over seeds, bands go from the lowest to the highest seed. More than eight
    groups are drawn without bands, coloured by p_L, with a dash for each schedule and setting.
    """
    many = len(found) > MANY
    with plt.rc_context(PRINT):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
        for curve, style in zip(found, _curve_styles(found), strict=True):
            marker = "o" if len(curve.epochs) == 1 else None
            for axes, values in ((left, curve.test_error), (right, curve.train_loss)):
                mean = values.mean(1)
                axes.plot(curve.epochs, mean, label=curve.label, marker=marker, **style)
                if values.shape[1] > 1 and not many:
                    band = (curve.epochs, values.min(1), values.max(1))
                    axes.fill_between(*band, color=style["color"], alpha=0.15, linewidth=0)
        left.set(xlabel="epoch", ylabel="test error (%)")
        scale(left, [error for curve in found for error in curve.test_error.mean(1)])
        right.set(xlabel="epoch", ylabel="training loss", yscale="log")
        plain_log_ticks(right)
        for axes in (left, right):
            axes.set_xlim(0, 1.03 * max(curve.epochs[-1] for curve in found))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        handles, labels = left.get_legend_handles_labels()
        title = (
            "mean over seeds" if many else "mean over seeds, band from the lowest to the highest"
        )
        several = any(curve.test_error.shape[1] > 1 for curve in found)
        entries = dict(zip(labels, handles, strict=True))
        legend(figure, entries, fontsize=7 if many else 8.5, **title_of([title] if several else []))
        return save(figure, stem)


def _curve_styles(found: Sequence[Curve]) -> list[dict[str, Any]]:
    """Few curves: a colour each. Many: from dark at low p_L to light at high, the constant depths
    black; where p_L does not tell them apart, their order does."""
    if len(found) <= MANY:
        return [{"color": color, "linewidth": 1.4} for color in COLORS[: len(found)]]
    shades = plt.colormaps["viridis"](np.linspace(0, 0.9, len(found)))  # 1 would vanish on white
    p_L = sorted({curve.p_L for curve in found if curve.p_L is not None and not curve.is_constant})
    if len(p_L) < 2:
        return [{"color": shade, "linewidth": 1.2} for shade in shades]
    styles = []
    for curve in found:
        alike = [other for other in found if other.is_constant == curve.is_constant]
        series = list(dict.fromkeys(other.series for other in alike))
        color = "black" if curve.is_constant else "0.6"
        if curve.p_L in p_L and not curve.is_constant:
            color = plt.colormaps["viridis"](0.9 * p_L.index(curve.p_L) / (len(p_L) - 1))
        dash = DASHES[series.index(curve.series) % len(DASHES)]
        styles.append({"color": color, "linestyle": dash, "linewidth": 1.2})
    return styles


def plot_time(points: Sequence[Point], stem: Path) -> Path:
    """Test error against the time of training; bars are the std over seeds, numbers are p_L."""
    longest = max(point.seconds[0] for point in points)
    unit, name = next(item for item in UNITS if longest >= 2 * item[0] or item[0] == 1)
    series = list(dict.fromkeys(point.series for point in points))
    with plt.rc_context(PRINT):
        figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        entries: dict[str, Any] = {}
        for i, series_name in enumerate(series):
            inside = [point for point in points if point.series == series_name]
            entries[series_name] = axes.errorbar(
                *([p.seconds[0] / unit for p in inside], [p.error[0] for p in inside]),
                yerr=bars([p.error[1] for p in inside]),
                xerr=[std / unit for std in bars([p.seconds[1] for p in inside])],
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[(i + i // len(COLORS)) % len(MARKERS)],
                linewidth=0.6,
                **MARKS,
            )
        axes.set(xlabel=f"training time ({name})", ylabel="test error (%)")
        axes.margins(0.1)
        scale(axes, [point.error[0] for point in points])
        texts = [BARS] if any(point.error[1] is not None for point in points) else []
        texts += ["numbers: $p_L$"] if any(point.label for point in points) else []
        legend(figure, entries, **title_of(texts))
        _label(axes, points, unit)
        return save(figure, stem)


def _label(axes: Axes, points: Sequence[Point], unit: float) -> None:
    """Writes each label beside its point where it covers no point, no bar and no other label."""
    axes.figure.draw_without_rendering()  # sets the layout
    taken = [box for point in points for box in _covered(axes, point, unit)]
    offsets = [
        (s * x, t * y) for x, y in ((5, 3), (3, 7), (9, 6)) for s in (1, -1) for t in (1, -1)
    ]
    for point in points:
        tried = []
        for dx, dy in offsets if point.label else ():
            note = axes.annotate(
                point.label,
                (point.seconds[0] / unit, point.error[0]),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                va="bottom" if dy > 0 else "top",
                fontsize=7.5,
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
    (x, x_std), (y, y_std) = ([v or 0 for v in pair] for pair in (point.seconds, point.error))
    boxes = []
    for dx, dy in ((x_std, 0), (0, y_std)):
        ends = [((x - dx) / unit, max(y - dy, 1e-9)), ((x + dx) / unit, y + dy)]
        boxes.append(Bbox(axes.transData.transform(ends)).padded(5))
    return boxes


def draw(groups: Sequence[Group], out: Path, paper: bool, times_comparable: bool) -> list[Path]:
    """Draws the figures that apply to the groups into `out` and removes those of before that no
    longer do; returns the paths of the PNG files."""
    drawn = []
    lines, levels = p_L_lines(groups)
    if lines and len({group.p_L for group in groups if group.p_L is not None}) > 1:
        drawn.append(plot_p_L(lines, levels, paper, out / "p_L"))
    grids = depth_grids(groups)
    if grids:
        drawn.append(plot_heatmap(grids, paper, out / "heatmap"))
    drawn.append(plot_curves(curves(groups), out / "curves"))
    if times_comparable:
        drawn.append(plot_time(time_points(groups), out / "time"))
    for name in NAMES:
        if out / f"{name}.png" not in drawn:
            for suffix in ("png", "pdf"):
                (out / f"{name}.{suffix}").unlink(missing_ok=True)
    return drawn
