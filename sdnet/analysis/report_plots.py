"""The figures of a report, each as PNG and PDF: what they show as plain data, and the drawing."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from sdnet.analysis.collect import Group, schedule_family, short_names
from sdnet.analysis.plots import STYLE

NAMES = ("p_L", "heatmap", "curves", "time")
PRINT = STYLE | {
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "legend.fontsize": 8.5,
    "axes.axisbelow": True,
}
# Okabe & Ito (2008), without yellow and with grey: told apart with any colour vision
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", "--", ":", "-.", (0, (6, 1)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
MARKS = {"markersize": 5, "elinewidth": 1, "capsize": 2.5}
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
MANY = len(COLORS)
CROWDED = 4  # more lines than that, of several settings, are drawn in a panel for each
WIDE = 8  # errors spanning more than this factor are drawn on a log axis

# Huang et al. (2016), ResNet-110 on CIFAR-10, test error in % of one run each.
PAPER_NAME = "Huang et al. 2016 (ResNet-110, CIFAR-10)"
PAPER_P_L = {  # Figure 8 left, read off the plot: +-0.05
    "linear decay": (
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        (6.96, 6.30, 5.97, 5.40, 5.25, 5.42, 5.39, 5.64, 5.89, 6.41),
    ),
    "uniform": (
        (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        (6.93, 6.55, 6.14, 5.92, 5.47, 5.27, 5.95, 6.41),
    ),
}


@dataclass
class Line:
    """A schedule's test error (%) against p_L; std over seeds, None for one seed.

    `setting` names the other settings: lines and constant depths with the same belong together.
    """

    label: str
    setting: str
    p_L: list[float]
    mean: list[float]
    std: list[float | None]


BARS = "mean ± standard deviation over seeds"


@dataclass
class Grid:
    """Mean test errors (%), `errors[row of p_L][column of depth]`, None where there is no run."""

    title: str
    p_L: list[float]
    depths: list[float]
    errors: list[list[float | None]]


PAPER_GRID = Grid(  # Figure 8 right, printed: linear decay on CIFAR-10, one run each
    "Huang et al. 2016 (CIFAR-10)",
    [1.0, 0.9, 0.8, 0.7, 0.6, 0.5],
    [20, 38, 56, 74, 92, 110],
    [
        [8.31, 6.67, 6.27, 6.53, 6.25, 6.41],
        [7.60, 6.16, 5.84, 5.88, 5.72, 5.89],
        [7.72, 6.29, 5.66, 5.59, 5.56, 5.64],
        [8.23, 6.42, 5.98, 5.72, 5.43, 5.39],
        [8.63, 6.66, 6.10, 5.94, 5.69, 5.42],
        [9.39, 7.12, 6.40, 5.79, 5.61, 5.25],
    ],
)


@dataclass
class Curve:
    """Over the epochs: test error (%) and training loss, a row (epoch) x column (seed) each."""

    label: str
    series: str
    p_L: float | None
    is_constant: bool
    epochs: list[float]
    test_error: np.ndarray
    train_loss: np.ndarray


@dataclass
class Point:
    """Test error (%) and training time (seconds) of a group: mean and std over seeds."""

    label: str
    series: str
    seconds: tuple[float, float | None]
    error: tuple[float, float | None]


# -- from the runs to plain data ------------------------------------------------------------------


def _setting(group: Group, leave: Sequence[str] = ()) -> str:
    """The settings other than the schedule in which groups differ: `depth 20, lr 0.1`."""
    names = short_names(list(group.shown))
    return ", ".join(
        f"{names[key]} {value}"
        for key, value in group.shown.items()
        if key not in leave and not key.startswith("schedule") and value is not None
    )


def _schedule(group: Group) -> str:
    """The schedule and in what it differs apart from p_L: `linear decay, rule timm`."""
    if group.is_baseline:
        return "constant depth"
    extra = [
        f"{key.removeprefix('schedule.')} {value}"
        for key, value in group.shown.items()
        if key.startswith("schedule.") and key != "schedule.p_L" and value is not None
    ]
    return ", ".join([group.schedule.replace("_", " "), *extra])


def _series(group: Group) -> str:
    return ", ".join(filter(None, [_schedule(group), _setting(group)]))


def p_L_lines(groups: Sequence[Group]) -> tuple[list[Line], dict[str, tuple[float, float | None]]]:
    """A line per schedule and other settings, and the constant depth of each of these settings.

    A schedule that is constant depth at p_L = 1 ends there in that point.
    """
    baselines = [group for group in groups if group.is_baseline]
    levels = {_setting(group): group.mean_std("test_error") for group in baselines}
    members: dict[tuple, list[Group]] = {}
    for group in groups:
        if group.p_L is not None and not group.is_baseline:
            key = (schedule_family(group), _setting(group))
            members.setdefault(key, []).append(group)
    lines = []
    for of_line in members.values():
        first = of_line[0]
        ends = [b for b in baselines if first.ends_in(b) and all(g.p_L != 1 for g in of_line)]
        points = [(g.p_L, *g.mean_std("test_error")) for g in sorted(of_line, key=lambda g: g.p_L)]
        points += [(1.0, *end.mean_std("test_error")) for end in ends]
        lines.append(Line(_schedule(first), _setting(first), *map(list, zip(*points, strict=True))))
    return lines, levels


def depth_grids(groups: Sequence[Group]) -> list[Grid]:
    """p_L x depth per schedule and other settings; constant depth is the row p_L = 1 of each."""
    with_both = [g for g in groups if g.p_L is not None and "model.depth" in g.settings]
    panels: dict[tuple, list[Group]] = {}
    for group in with_both:
        if not group.is_baseline:
            key = (schedule_family(group), _setting(group, ["model.depth"]))
            panels.setdefault(key, []).append(group)
    grids = []
    for members in panels.values():
        first = members[0]
        members = members + [
            b for b in with_both if b.is_baseline and any(g.ends_in(b) for g in members)
        ]
        errors = {
            (g.p_L, float(g.settings["model.depth"])): g.mean_std("test_error")[0] for g in members
        }
        p_L = sorted({p for p, _ in errors}, reverse=True)
        depths = sorted({depth for _, depth in errors})
        if len(p_L) > 1 and len(depths) > 1:
            title = ", ".join(filter(None, [_schedule(first), _setting(first, ["model.depth"])]))
            table = [[errors.get((p, depth)) for depth in depths] for p in p_L]
            grids.append(Grid(title, p_L, depths, table))
    return grids


def curves(groups: Sequence[Group]) -> list[Curve]:
    """A curve per group over the epochs that all of its runs evaluated."""
    found = []
    for group in groups:
        by_epoch = [{row["epoch"]: row for row in run.rows} for run in group.runs]
        epochs = sorted(set.intersection(*(set(rows) for rows in by_epoch)))
        test_error, train_loss = (
            np.array([[rows[e][name] for rows in by_epoch] for e in epochs], dtype=float)
            for name in ("test_error", "train_loss")
        )
        label = _series(group)
        if group.p_L is not None and not group.is_baseline:
            label = ", ".join(
                filter(None, [_schedule(group), f"$p_L$ {group.p_L:g}", _setting(group)])
            )
        name = (label, _series(group), group.p_L, group.is_baseline)
        found.append(Curve(*name, epochs, test_error, train_loss))
    return found


def time_points(groups: Sequence[Group]) -> list[Point]:
    """A point per group; its label is p_L, where its schedule has one."""
    return [
        Point(
            "" if group.is_baseline or group.p_L is None else f"{group.p_L:g}",
            _series(group),
            group.mean_std("train_seconds"),
            group.mean_std("test_error"),
        )
        for group in groups
    ]


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


# -- drawing --------------------------------------------------------------------------------------


def _save(figure: Figure, stem: Path) -> Path:
    """Writes PNG and PDF, each beside its place and renamed; returns the PNG's path."""
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
        path = stem.with_name(f"{stem.name}.{suffix}")
        temporary = stem.with_name(f".{stem.name}.{os.getpid()}.{suffix}")
        figure.savefig(temporary, metadata=metadata)
        os.replace(temporary, path)
    plt.close(figure)
    return path


def _scale(axes: Axes, errors: Sequence[float]) -> None:
    """A log axis where a few bad settings would press the others together."""
    if min(errors) > 0 and max(errors) > WIDE * min(errors):
        axes.set_yscale("log")
        _plain_log_ticks(axes)


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high > 8 * low else (1, 1.5, *range(2, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, entries: dict[str, Any], **options: Any) -> None:
    """A legend above the axes in as many columns as fit; the figure grows by its height."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=columns, **options
        )
        box = legend.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        width, height = figure.get_size_inches()
        if box.width < 0.98 * width or columns == 1:
            figure.set_size_inches(max(width, box.width + 0.2), height + box.height)
            return
        legend.remove()


def _bars(std: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in std]


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
        _hide_rest(grid, len(panels))
        figure.supxlabel("survival probability $p_L$", fontsize=10)
        figure.supylabel("test error (%)", fontsize=10)
        _legend(figure, entries, **_title([BARS] if any(map(_has_bars, lines)) else []))
        return _save(figure, stem)


def _has_bars(line: Line) -> bool:
    return any(std is not None for std in line.std)


def _title(texts: Sequence[str]) -> dict[str, Any]:
    """Options for a legend with a title of these parts, if any."""
    return {"title": "; ".join(texts), "title_fontsize": 8.5} if texts else {}


def _hide_rest(grid: np.ndarray, used: int) -> None:
    """Hides the axes behind the used ones; those above show their ticks in their place."""
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < used)
        if i < used <= i + grid.shape[1]:
            axes.tick_params(labelbottom=True)


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
            *([p + shift for p in line.p_L], line.mean, _bars(line.std)),
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
    _scale(axes, [error for line in inside for error in line.mean])
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
        _hide_rest(axes_grid, len(panels))
        figure.supylabel("survival probability $p_L$", fontsize=10)
        figure.supxlabel("network depth (layers)", fontsize=10)
        figure.suptitle("test error (%)", fontsize=10)
        return _save(figure, stem)


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
        _scale(left, [error for curve in found for error in curve.test_error.mean(1)])
        right.set(xlabel="epoch", ylabel="training loss", yscale="log")
        _plain_log_ticks(right)
        for axes in (left, right):
            axes.set_xlim(0, 1.03 * max(curve.epochs[-1] for curve in found))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        handles, labels = left.get_legend_handles_labels()
        title = (
            "mean over seeds" if many else "mean over seeds, band from the lowest to the highest"
        )
        several = any(curve.test_error.shape[1] > 1 for curve in found)
        entries = dict(zip(labels, handles, strict=True))
        _legend(figure, entries, fontsize=7 if many else 8.5, **_title([title] if several else []))
        return _save(figure, stem)


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
                yerr=_bars([p.error[1] for p in inside]),
                xerr=[std / unit for std in _bars([p.seconds[1] for p in inside])],
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[(i + i // len(COLORS)) % len(MARKERS)],
                linewidth=0.6,
                **MARKS,
            )
        axes.set(xlabel=f"training time ({name})", ylabel="test error (%)")
        axes.margins(0.1)
        _scale(axes, [point.error[0] for point in points])
        texts = [BARS] if any(point.error[1] is not None for point in points) else []
        texts += ["numbers: $p_L$"] if any(point.label for point in points) else []
        _legend(figure, entries, **_title(texts))
        _label(axes, points, unit)
        return _save(figure, stem)


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
