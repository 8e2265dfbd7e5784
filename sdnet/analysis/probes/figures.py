"""The figures of the probes. Each takes what several runs gave, by their names, or that of one."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdnet.analysis.figure_style import COLORS, DASHES, MARKERS, STYLES, fitting_legend, save

Rows = Sequence[Mapping[str, Any]]
Named = Mapping[str, Rows]
RC = STYLES["screen"].rc
MOST_LABELS = 20  # steps of a front that are numbered each
MEASURES = {  # of averages: the column, its title
    "error": "error (%)",
    "loss": "negative\nlog-likelihood",
    "brier": "Brier score",
    "ece": "calibration\nerror (%)",
    "auarc": "AUARC (%)\nby confidence",
    "auarc_entropy": "AUARC (%)\nby entropy",
}


class About(NamedTuple):
    """What is said of all numbers of a figure, and how their runs look.

    Attributes:
        of: which images and which checkpoint they are of.
        colors: one for each run.
    """

    of: str
    colors: Sequence[Any] = COLORS

    def color(self, number: int) -> Any:
        return self.colors[number % len(self.colors)]


def plot_lesions(named: Named, about: About, stem: Path) -> Path:
    """What each branch out costs, above its p_l; the runs' bars stand side by side."""
    gates = len(next(iter(named.values())))
    with plt.rc_context(RC):
        size = (min(12.0, max(6.0, 0.16 * gates * len(named) + 2)), 4.6)
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=size, sharex=True, height_ratios=(2, 1), layout="constrained"
        )
        for number, (name, rows) in enumerate(named.items()):
            width = 0.8 / len(named)
            x = [row["gate"] - 0.4 + width * (number + 0.5) for row in rows]
            damage = [row["test_error_increase"] for row in rows]
            survival = [row["survival"] for row in rows]
            top.bar(x, damage, 0.9 * width, color=about.color(number), label=name)
            bottom.plot(
                [row["gate"] for row in rows],
                survival,
                **_line(number, about),
            )
        rows = next(iter(named.values()))
        for before, row in itertools.pairwise(rows):
            if row["stage"] != before["stage"]:
                for axes in (top, bottom):
                    axes.axvline(row["gate"] - 0.5, color="0.4", linestyle="--", linewidth=1)
        for stage in dict.fromkeys(row["stage"] for row in rows):
            middle = np.mean([row["gate"] for row in rows if row["stage"] == stage])
            top.annotate(
                f"stage {stage}",
                (middle, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color="0.3",
            )
        top.axhline(0, color="0.4", linewidth=0.8)
        top.set_ylabel("test error without it,\nabove full depth (points)")
        bottom.set(xlabel="residual branch, from the input", ylabel="survival $p_l$", ylim=(0, 1.1))
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _finish(figure, named, f"One branch out at test time\n{about.of}", stem)


def plot_sets(named: Named, orders: Named, about: About, stem: Path) -> Path:
    """Test error against the number of branches out and, where there are orders, against theirs."""
    panels = 2 if orders else 1
    with plt.rc_context(RC):
        size = (2.4 + 3.4 * panels, 3.8)
        figure, grid = plt.subplots(
            1, panels, figsize=size, squeeze=False, sharey=True, layout="constrained"
        )
        for number, (name, rows) in enumerate(named.items()):
            _band(grid[0, 0], rows, name, _line(number, about))
            for row in orders.get(name, ()):
                point = _line(number, about) | {"linestyle": "", "alpha": 0.5}
                grid[0, 1].plot(row["kendall_tau"], row["error"], **point)
        most = max(sum(row["k"] == k for row in rows) for rows in named.values() for k in (1, 2))
        grid[0, 0].set(xlabel="random branches out", ylabel="test error (%)", ylim=(0, None))
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        if orders:
            label = "rank correlation of the blocks' order\nwith that of training (Kendall's tau)"
            grid[0, 1].set(xlabel=label)
            grid[0, 1].invert_xaxis()
        title = f"Branches out at test time: means and ranges of up to {most} sets"
        swapped = "; right: blocks swapped" if orders else ""
        return _finish(figure, named, f"{title}{swapped}\n{about.of}", stem)


def plot_truncation(named: Named, about: About, stem: Path) -> Path:
    """Test error without the last k blocks of a stage: a panel for each stage."""
    stages = list(dict.fromkeys(row["stage"] for rows in named.values() for row in rows))
    with plt.rc_context(RC):
        size = (max(5.0, 2.4 * len(stages) + 1), 3.4)
        figure, grid = plt.subplots(
            1, len(stages), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for axes, stage in zip(grid.flat, stages, strict=True):
            for number, (name, rows) in enumerate(named.items()):
                inside = [row for row in rows if row["stage"] == stage]
                x, y = ([row[key] for row in inside] for key in ("blocks_out", "error"))
                axes.plot(x, y, label=name, **_line(number, about))
            axes.set_title(f"stage {stage}", fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0, 0].set_ylim(bottom=0)  # of all panels: it holds the top where it is
        grid[0, 0].set_ylabel("test error (%)")
        grid[0, len(stages) // 2].set_xlabel("blocks out, the last of the stage first")
        return _finish(figure, named, f"Stages cut short at test time\n{about.of}", stem)


def plot_pareto(named: Named, about: About, stem: Path) -> Path:
    """Test error against the multiply-adds that are left; numbers are the branches that went."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
        for number, (name, rows) in enumerate(named.items()):
            x = [row["macs"] / 1e6 for row in rows]
            y = [row["test_error"] for row in rows]
            axes.plot(x, y, label=name, **_line(number, about))
            every = -(-len(rows) // MOST_LABELS)
            for row, at in list(zip(rows, zip(x, y, strict=True), strict=True))[1::every]:
                axes.annotate(
                    str(row["gate"]),
                    at,
                    (4, -9) if number % 2 else (-3, 4),
                    textcoords="offset points",
                    fontsize=7,
                    ha="left" if number % 2 else "right",
                    color=about.color(number),
                )
        axes.set(xlabel="multiply-adds of an image (millions)", ylabel="test error (%)")
        axes.set_ylim(bottom=-0.06 * axes.get_ylim()[1])  # room for numbers below
        axes.invert_xaxis()
        gone = {row["gate"] for rows in named.values() for row in rows[1:]}
        which = "which, where the seeds agree" if gone & {None, ""} else "which"
        title = f"Branches out one by one, chosen on validation images\nnumbers say {which}"
        return _finish(figure, named, f"{title}\n{about.of}", stem)


def plot_averages(rows: Rows, name: str, about: About, stem: Path) -> Path:
    """The measures of full depth and of averages, a panel for each measure."""
    names = [_with_members(row) for row in rows]
    with plt.rc_context(RC):
        figure, grid = plt.subplots(
            2, 3, figsize=(9, 1.9 + 0.44 * len(rows)), sharey=True, layout="constrained"
        )
        for axes, (key, title) in zip(grid.flat, MEASURES.items(), strict=True):
            values = [row[key] for row in rows]
            axes.plot(values, range(len(rows)), "o", color=COLORS[0])
            for place, value in enumerate(values):
                axes.annotate(
                    f"{value:.4g}",
                    (value, place),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
            axes.set_title(title, fontsize=10)
            axes.set_yticks(range(len(rows)), names)
            axes.set_ylim(len(rows) - 0.5, -0.7)
            axes.margins(x=0.2)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        title = f"Full depth, and averages of several networks\n{about.of}"
        return _finish(figure, {name: rows}, title, stem)


def plot_corruptions(named: Named, about: About, stem: Path) -> Path:
    """Error and calibration error against the strength, a column for each kind of corruption."""
    kinds = list(dict.fromkeys(row["kind"] for rows in named.values() for row in rows))[1:]
    with plt.rc_context(RC):
        figure, grid = plt.subplots(
            2,
            len(kinds),
            figsize=(2.1 * len(kinds), 4.6),
            sharex=True,
            sharey="row",
            layout="constrained",
        )
        for column, kind in enumerate(kinds):
            for number, (name, rows) in enumerate(named.items()):
                inside = [row for row in rows if row["kind"] in ("none", kind)]
                for axes, key in zip(grid[:, column], ("error", "ece"), strict=True):
                    x, y = ([row[k] for row in inside] for k in ("strength", key))
                    axes.plot(x, y, label=name, **_line(number, about))
            grid[0, column].set_title(kind, fontsize=10)
        for axes in grid.flat:
            axes.set_xticks(range(6))
            axes.set_ylim(bottom=0)
        grid[0, 0].set_ylabel("test error (%)")
        grid[1, 0].set_ylabel("calibration error (%)")
        grid[1, len(kinds) // 2].set_xlabel("strength; 0: the images as they are")
        return _finish(figure, named, f"Corrupted images\n{about.of}", stem)


def _band(axes: Axes, rows: Rows, name: str, line: Mapping[str, Any]) -> None:
    """The mean error with k branches out, and a band from the lowest to the highest."""
    values = sorted({row["k"] for row in rows})
    errors = [[row["error"] for row in rows if row["k"] == value] for value in values]
    axes.plot(values, [np.mean(found) for found in errors], label=name, **line)
    low, high = ([end(found) for found in errors] for end in (min, max))
    axes.fill_between(values, low, high, color=line["color"], alpha=0.2, linewidth=0)


def _with_members(row: Mapping[str, Any]) -> str:
    several = row["members"] > 1  # not `n = 4`, which is of seeds
    return f"{row['name']}, {row['members']} networks" if several else str(row["name"])


def _line(number: int, about: About) -> dict[str, Any]:
    return {
        "color": about.color(number),
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markersize": 4,
    }


def _finish(figure: Figure, named: Named, title: str, stem: Path) -> Path:
    """The title, which names a single run, and a legend of several; then the file."""
    if len(named) == 1:
        title = f"{next(iter(named))}\n{title}"
    else:
        handles, names = figure.axes[0].get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True))
        fitting_legend(figure, entries, 3, loc="outside lower center")
    figure.suptitle(title, fontsize=10, parse_math=False)
    return save(figure, stem)
