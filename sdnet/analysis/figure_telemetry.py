"""Figures of gradients: of a run over its blocks, and of a report's rows beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sdnet.analysis.figure_data import curves
from sdnet.analysis.figure_style import Style, curve_styles, legend, plain_log_ticks, save
from sdnet.analysis.groups import Group
from sdnet.analysis.plots import STYLE
from sdnet.runs.files import Damaged
from sdnet.runs.telemetry import read_telemetry

LABEL = "mean absolute gradient,\nfirst convolution"
LAST = 0.25  # of the training, of which the gradients by block are the mean


@dataclass
class Gradients:
    """Mean absolute gradients (evaluations, branches) of a run, and where they were measured."""

    epochs: np.ndarray
    values: np.ndarray
    blocks: list[str]

    @property
    def at_the_end(self) -> np.ndarray:
        """(branches,) over the last quarter of the training."""
        late = self.epochs > (1 - LAST) * self.epochs[-1]
        return np.nanmean(self.values[late], axis=0)


def gradients_of(path: Path) -> Gradients | None:
    """What a run's telemetry.csv holds of them; None where there is none, or a damaged one."""
    try:
        rows = [row for row in read_telemetry(path) if row["block"]]
    except Damaged:
        return None
    if not rows:
        return None
    names = list(dict.fromkeys(row["name"] for row in rows))
    epochs = list(dict.fromkeys(row["epoch"] for row in rows))
    values = np.full((len(epochs), len(names)), np.nan)
    for row in rows:
        if row["gradient_mean"] is not None:
            values[epochs.index(row["epoch"]), names.index(row["name"])] = row["gradient_mean"]
    return Gradients(np.array(epochs), values, names)


def plot_run(path: Path, title: str, out: Path) -> bool:
    """Gradients of a run's first, middle and last branch over the epochs, and of all at its end.

    Returns:
        False where there is no telemetry: then nothing is drawn.
    """
    found = gradients_of(path)
    if found is None or np.isnan(found.at_the_end).all():
        return False
    count = len(found.blocks)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        for i, color in zip(sorted({0, count // 2, count - 1}), ("C0", "C1", "C2"), strict=False):
            label = f"{i + 1} ({found.blocks[i]})"
            marker = "o" if len(found.epochs) == 1 else None
            left.plot(found.epochs, found.values[:, i], color=color, marker=marker, label=label)
        figure.legend(title="branch", fontsize="small", loc="outside lower center", ncols=3)
        right.plot(range(1, count + 1), found.at_the_end, "o-", markersize=3, linewidth=1)
        _label(left, right)
        figure.suptitle(title, fontsize=10, parse_math=False)
        figure.savefig(out)
        plt.close(figure)
    return True


def plot_rows(groups: Sequence[Group], title: str, style: Style, stem: Path) -> Path | None:
    """Gradients of the first block over the epochs (Figure 7), and of all blocks at the end.

    Lines are means over seeds, bands go from the lowest to the highest. A group without telemetry
    in all of its runs is left out; None where that is every group.
    """
    known = []
    for group in groups:
        found = [gradients_of(run.folder / "telemetry.csv") for run in group.runs]
        alike = {(tuple(f.epochs), tuple(f.blocks)) if f else None for f in found}
        if len(alike) == 1 and None not in alike:
            known.append((group, found))
    if not known:
        return None
    drawn = curves([group for group, _ in known])
    with plt.rc_context(style.rc):
        rows, columns = (1, 2) if style.columns == 2 else (2, 1)
        figure, both = plt.subplots(rows, columns, figsize=style.two_panels, layout="constrained")
        entries: dict[str, Any] = {}
        for (_, found), curve, look in zip(known, drawn, curve_styles(drawn), strict=True):
            first = np.stack([f.values[:, 0] for f in found])
            ends = np.stack([f.at_the_end for f in found])
            blocks = np.arange(1, ends.shape[1] + 1)
            for axes, x, y in ((both[0], found[0].epochs, first), (both[1], blocks, ends)):
                marker = "o" if len(x) == 1 else None
                (handle,) = axes.plot(x, y.mean(0), marker=marker, **look)
                if len(y) > 1:
                    band = (x, y.min(0), y.max(0))
                    axes.fill_between(*band, color=look["color"], alpha=0.15, linewidth=0)
            entries[f"{curve.label} (n = {len(found)})"] = handle
        _label(*both, ", block 1")
        legend(figure, entries, title, any(len(found) > 1 for _, found in known))
        return save(figure, stem)


def _label(left: Axes, right: Axes, which: str = "") -> None:
    left.set(xlabel="epoch", ylabel=LABEL + which)
    right.set(xlabel="branch, by depth", ylabel=f"{LABEL},\nlast quarter of training")
    for axes in (left, right):
        axes.set_yscale("log")
        plain_log_ticks(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
