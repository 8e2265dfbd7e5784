"""What the figures of a report show, as plain data; and the paper's numbers beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdnet.analysis.groups import Group, schedule_family, short_names

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
