"""The figures of an evaluation: how sure a network is and how right, and what it confuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from sdnet.analysis.figure_style import COLORS, STYLES, save
from sdnet.analysis.measures import BINS, calibration_error, confusion, reliability, right
from sdnet.runs.predictions import Predictions

MOST_CLASSES = 20  # of which the whole table is drawn
MOST_PAIRS = 20  # of classes, where there are more


def plot_reliability(parts: Mapping[str, Predictions], title: str, stem: Path) -> Path:
    """Accuracy against confidence with bins of equal width, and below how many images are in each.

    One column for each part. Bars under the diagonal: the network is surer than it is right.
    """
    with plt.rc_context(STYLES["screen"].rc):
        figure, grid = plt.subplots(
            *(2, len(parts)),
            figsize=(1 + 3.6 * len(parts), 5),
            layout="constrained",
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": (3, 1)},
        )
        for (name, found), (above, below) in zip(parts.items(), grid.T, strict=True):
            bins = reliability(found.confidence, right(found))
            middles = [100 * (b.low + b.high) / 2 for b in bins]
            width = 0.92 * 100 / BINS
            above.bar(middles, [100 * b.accuracy for b in bins], width, color=COLORS[0])
            points = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
            dots = {"color": COLORS[1], "markersize": 4, "clip_on": False, "zorder": 3}
            above.plot(*points, "o", **dots, label="mean of the bin")
            above.plot([0, 100], [0, 100], "--", color="0.3", linewidth=1, label="calibrated")
            said = f"{name}, n = {len(found)}: ECE {calibration_error(bins):.2f} %"
            above.set_title(said, fontsize=10)
            above.set(xlim=(0, 100), ylim=(0, 103))
            below.bar(middles, [b.images for b in bins], width, color="0.6")
            below.set(xlabel="confidence (%)", yscale="log", ylim=(0.7, 1.5 * len(found)))
        grid[0, 0].set_ylabel("accuracy (%)")
        grid[1, 0].set_ylabel("images")
        entries = grid[0, 0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=2)
        figure.suptitle(title, fontsize=10, parse_math=False)
        return save(figure, stem)


def plot_confusion(found: Predictions, names: Sequence[str], title: str, stem: Path) -> Path:
    """Of each true class the share that is taken for each; of many classes the commonest mistakes.

    The title is followed by how many images there are.
    """
    with plt.rc_context(STYLES["screen"].rc | {"axes.grid": False}):
        draw = _matrix if found.classes <= MOST_CLASSES else _pairs
        figure = draw(found, [_short(name) for name in names])
        figure.suptitle(f"{title}, n = {len(found)}", fontsize=10, parse_math=False)
        return save(figure, stem)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _matrix(found: Predictions, names: Sequence[str]) -> plt.Figure:
    counts = confusion(found)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    edge = 2.2 + 0.42 * len(names)
    figure, axes = plt.subplots(figsize=(edge + 0.8, edge), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = shares[row, column] > 50
            text = {"color": "white" if dark else "black", "ha": "center", "va": "center"}
            axes.text(column, row, count, fontsize=7, **text)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(places, names)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="of the true class (%); numbers: images", shrink=0.8)
    return figure


def _pairs(found: Predictions, names: Sequence[str]) -> plt.Figure:
    wrong = ~right(found)
    pairs = np.stack([found.labels[wrong], found.predicted[wrong]])
    (actual, predicted), counts = np.unique(pairs, axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MOST_PAIRS]
    labels = [f"{names[actual[i]]} → {names[predicted[i]]}" for i in most]
    figure, axes = plt.subplots(figsize=(7, 1.5 + 0.24 * max(len(most), 4)), layout="constrained")
    axes.barh(range(len(most)), counts[most], color=COLORS[0])
    axes.set_yticks(range(len(most)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = f"the {len(most)} commonest of {wrong.sum()} mistakes"
    axes.set(xlabel=f"images ({shown})", ylabel="true class → predicted class")
    return figure
