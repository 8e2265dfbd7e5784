"""What the figures of a report show, as plain data; and the paper's numbers beside them."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdnet.analysis.groups import Group, plain, schedule_family, short_names
from sdnet.runs.identity import label as label_of
from sdnet.runs.shown import counted

LONGEST = 100  # letters of a legend's entry, which a figure grows with
PAPER = json.loads(Path(__file__).with_name("huang2016.json").read_text(encoding="utf-8"))
PAPER_NAME = "Huang et al. 2016 (ResNet-110, CIFAR-10)"
PAPER_P_L = {
    name: (PAPER["p_L"][name]["p_L"], PAPER["p_L"][name]["test_error"])
    for name in ("linear decay", "uniform")
}


class Spread(NamedTuple):
    """A number over n runs, which differ by their seed: mean, lowest and highest."""

    mean: float
    low: float
    high: float
    n: int


@dataclass
class Line:
    """A schedule's test error (%) against p_L.

    `setting` names the other settings: lines and constant depths with the same belong together.
    """

    label: str
    setting: str
    p_L: list[float]
    errors: list[Spread]


@dataclass
class Grid:
    """Mean test errors (%), `errors[row of p_L][column of depth]`, None where there is no run."""

    title: str
    p_L: list[float]
    depths: list[float]
    errors: list[list[float | None]]


PAPER_GRID = Grid(
    "Huang et al. 2016 (CIFAR-10)",
    PAPER["depth"]["p_L"],
    PAPER["depth"]["depths"],
    PAPER["depth"]["test_error"],
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
    """Test error (%) of a group and what its training cost: seconds, or multiply-adds.

    Attributes:
        series: the schedule and the other settings; `joins`: the series whose end at p_L = 1 it is.
    """

    p_L: float | None
    is_constant: bool
    series: str
    cost: Spread
    error: Spread
    joins: list[str] = field(default_factory=list)


# -- from the runs to plain data ------------------------------------------------------------------


def spread(group: Group, name: str) -> Spread:
    """A number of summary.json over the runs of a group."""
    values = [run.summary[name] for run in group.runs]
    return Spread(statistics.fmean(values), min(values), max(values), len(values))


def title_of(groups: Sequence[Group]) -> str:
    """What all runs share, of data set, network and epochs: `resnet20 on digits, 30 epochs`."""
    configs = [run.config for group in groups for run in group.runs]
    model = {label_of(c["model"]) for c in configs}
    data = {c.get("dataset", {}).get("name") for c in configs}
    budgets = {c["trainer"].get("budget") for c in configs}
    epochs = {c["trainer"]["epochs"] for c in configs} if budgets == {None} else set()
    shared = [found.pop() for found in (model, data) if len(found) == 1]
    parts = [" on ".join(filter(None, shared))]
    if len(epochs) == 1:
        (number,) = epochs
        parts.append(counted(number, "epoch"))
    elif len(budgets) == 1 and budgets != {None}:
        parts.append(f"as much as {counted(budgets.pop(), 'epoch')} of constant depth")
    return ", ".join(filter(None, parts))


def _drawn(text: str) -> str:
    """A text of a configuration for a figure, where a dollar begins a formula."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("$", r"\$")


def _setting(group: Group, leave: Sequence[str] = ()) -> str:
    """The settings other than the schedule in which groups differ: `depth 20, lr 0.1`."""
    names = short_names(list(group.shown))
    return _drawn(
        ", ".join(
            f"{names[key]} {value}"
            for key, value in group.shown.items()
            if key not in leave and not key.startswith("schedule") and value is not None
        )
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
    return _drawn(", ".join([group.schedule.replace("_", " "), *extra]))


def _series(group: Group) -> str:
    return ", ".join(filter(None, [_schedule(group), _setting(group)]))


def p_L_lines(groups: Sequence[Group]) -> tuple[list[Line], dict[str, Spread]]:
    """A line per schedule and other settings, and the constant depth of each of these settings.

    A schedule that is constant depth at p_L = 1 ends there in that point.
    """
    baselines = [group for group in groups if group.is_baseline]
    levels = {_setting(group): spread(group, "test_error") for group in baselines}
    members: dict[tuple, list[Group]] = {}
    for group in groups:
        if group.p_L is not None and not group.is_baseline:
            key = (schedule_family(group), _setting(group))
            members.setdefault(key, []).append(group)
    lines = []
    for of_line in members.values():
        first = of_line[0]
        ends = [b for b in baselines if first.ends_in(b) and all(g.p_L != 1 for g in of_line)]
        points = [(g.p_L, spread(g, "test_error")) for g in sorted(of_line, key=lambda g: g.p_L)]
        points += [(1.0, spread(end, "test_error")) for end in ends]
        lines.append(Line(_schedule(first), _setting(first), *map(list, zip(*points, strict=True))))
    return lines, levels


def depth_grids(groups: Sequence[Group]) -> list[Grid]:
    """p_L x depth per schedule and other settings; constant depth is the row p_L = 1 of each."""
    depths = {g.id: plain(g.settings.get("model.depth")) for g in groups}
    with_both = [g for g in groups if g.p_L is not None and type(depths[g.id]) in (int, float)]
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
        errors = {(g.p_L, float(depths[g.id])): g.mean_std("test_error")[0] for g in members}
        p_L = sorted({p for p, _ in errors}, reverse=True)
        columns = sorted({depth for _, depth in errors})
        if len(p_L) > 1 and len(columns) > 1:
            title = ", ".join(filter(None, [_schedule(first), _setting(first, ["model.depth"])]))
            table = [[errors.get((p, depth)) for depth in columns] for p in p_L]
            grids.append(Grid(title, p_L, columns, table))
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


def points_by(cost: str, groups: Sequence[Group]) -> list[Point]:
    """A point per group, in each series by p_L; constant depth joins the schedules it ends.

    Args:
        cost: a number of summary.json.
    """
    points = []
    for group in sorted(groups, key=lambda g: -1.0 if g.p_L is None else g.p_L):
        ended = (_series(g) for g in groups if group.is_baseline and g.ends_in(group))
        joins = list(dict.fromkeys(ended))
        values = (spread(group, cost), spread(group, "test_error"))
        points.append(Point(group.p_L, group.is_baseline, _series(group), *values, joins))
    return points


def check(groups: Sequence[Group]) -> None:
    """Raises what a figure of these groups would."""
    for data in (title_of, p_L_lines, depth_grids, curves):
        data(groups)
    points_by("train_seconds", groups)
