"""What the figures of a report have in common: type, colours, axes, legends and files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sdnet.analysis.plots import STYLE

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
WIDE = 8  # errors spanning more than this factor are drawn on a log axis


def save(figure: Figure, stem: Path) -> Path:
    """Writes PNG and PDF, each beside its place and renamed; returns the PNG's path."""
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
        path = stem.with_name(f"{stem.name}.{suffix}")
        temporary = stem.with_name(f".{stem.name}.{os.getpid()}.{suffix}")
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
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high > 8 * low else (1, 1.5, *range(2, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, entries: dict[str, Any], **options: Any) -> None:
    """A legend above the axes in as many columns as fit; the figure grows by its height."""
    for columns in (4, 3, 2, 1):
        made = figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=columns, **options
        )
        box = made.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        width, height = figure.get_size_inches()
        if box.width < 0.98 * width or columns == 1:
            figure.set_size_inches(max(width, box.width + 0.2), height + box.height)
            return
        made.remove()


def bars(std: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in std]


def title_of(texts: Sequence[str]) -> dict[str, Any]:
    """Options for a legend with a title of these parts, if any."""
    return {"title": "; ".join(texts), "title_fontsize": 8.5} if texts else {}


def hide_rest(grid: np.ndarray, used: int) -> None:
    """Hides the axes behind the used ones; those above show their ticks in their place."""
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < used)
        if i < used <= i + grid.shape[1]:
            axes.tick_params(labelbottom=True)
