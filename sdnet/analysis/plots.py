"""The figures of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def plot_survival(
    survival: Sequence[float],
    stage_blocks: Sequence[int],
    title: str,
    path: Path,
    ends: Sequence[Sequence[float]] = (),
) -> None:
    """p_l against the block l, with the stages marked: Figure 2 of the paper.

    Args:
        survival: averaged over the training, where it changes.
        ends: what it is then at the start and at the end of the training.
    """
    L = len(survival)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
        axes.bar(range(1, L + 1), survival, width=0.8, color="tab:blue", alpha=0.8)
        for given, label, color in zip(ends, ("start", "end"), ("0.45", "0"), strict=False):
            left, right = ([l + side for l in range(1, L + 1)] for side in (-0.4, 0.4))
            axes.hlines(given, left, right, color, label=f"at the {label} of training")
        if ends:
            axes.legend(loc="lower left", frameon=True)
        first = 1
        for stage, blocks in enumerate(stage_blocks, start=1):
            if stage > 1:
                axes.axvline(first - 0.5, color="0.4", linestyle="--", linewidth=1)
            middle = first + (blocks - 1) / 2
            axes.text(middle, 1.03, f"stage {stage}", ha="center", va="bottom", color="0.3")
            first += blocks
        label = "survival probability $p_l$" + (", mean over training" if ends else "")
        axes.set(xlabel="block $l$", ylabel=label, ylim=(0, 1.12))
        axes.set_xlim(0.4, L + 0.6)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
        axes.set_title(
            f"{title}: {sum(survival):.4g} of {L} blocks expected", fontsize=10, parse_math=False
        )
        figure.savefig(path)
        plt.close(figure)


def plot_curves(rows: Sequence[dict[str, Any]], best_epoch: float, title: str, path: Path) -> None:
    """Training loss and errors (log axes) against the epoch: Figure 3 of the paper.

    Dotted lines mark where the learning rate was divided, a ring the epoch whose test error is
    reported. An error of 0 is drawn at the lower edge.
    """
    epochs = [row["epoch"] for row in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        marker = "o" if len(rows) == 1 else None
        loss = [row["train_loss"] for row in rows]
        left.semilogy(epochs, loss, color="tab:blue", marker=marker, label="training")
        left.set(xlabel="epoch", ylabel="training loss")
        plotted = []
        for key, label, color in (
            ("train_error", "training", "tab:blue"),
            ("val_error", "validation", "tab:orange"),
            ("test_error", "test", "tab:green"),
        ):
            if rows[0].get(key) is not None:
                errors = [row[key] for row in rows]
                plotted += errors
                right.plot(epochs, errors, color=color, marker=marker, label=label)
        best = next(row for row in rows if row["epoch"] == best_epoch)
        right.plot(
            best_epoch,
            best["test_error"],
            "o",
            color="tab:green",
            fillstyle="none",
            markersize=9,
            label=f"{best['test_error']:.2f} % reported",
        )
        right.set(xlabel="epoch", ylabel="error (%)")
        _log_axis_with_zero(right, plotted)
        rates, dropped = [row["lr"] for row in rows], False
        for i in range(1, len(rows) - 1):
            if rates[i - 1] == rates[i] > 2 * rates[i + 1]:  # a step down, not a slope
                dropped = True
                for axes in (left, right):
                    axes.axvline(epochs[i], color="0.5", linestyle=":", linewidth=1)
        for axes in (left, right):
            if len(epochs) > 1:
                axes.set_xlim(epochs[0], epochs[-1])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7), numticks=30))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
        if dropped:
            right.axvline(math.nan, color="0.5", linestyle=":", linewidth=1, label="lower rate")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.suptitle(title, fontsize=10, parse_math=False)
        figure.savefig(path)
        plt.close(figure)


def log_steps(low: float, high: float) -> tuple[float, ...]:
    """Where a log axis from `low` to `high` has ticks within each power of ten."""
    return (1, 2, 5) if high > 8 * low else (1, 1.5, *range(2, 10))


def _log_axis_with_zero(axes: Axes, values: Sequence[float]) -> None:
    """A log axis from the smallest number above 0, under which 0 has a place of its own."""
    above = [value for value in values if value > 0]
    if not above:
        return
    low, high = min(above), max(above)
    if low < max(values) and min(values) == 0:
        axes.set_yscale("symlog", linthresh=low, linscale=0.3)
    else:
        axes.set_yscale("log")
    decades = (step * 10.0**e for e in range(-6, 7) for step in log_steps(low, high))
    ticks = [tick for tick in decades if low <= tick <= 1.05 * high]
    axes.set_yticks([0.0, *ticks] if min(values) == 0 else ticks)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
