"""The numbers of a report: times that compare, what is saved of them, a row for a group."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from sdnet.analysis.collect import Run, work_on
from sdnet.analysis.differences import COLUMNS, Difference, pairs_of
from sdnet.analysis.groups import Group, head, without
from sdnet.analysis.repeat import command, commits
from sdnet.runs.shown import counted

# What has to be the same for times to compare. A GPU's work is started by one thread, whose
# processor was not noted at first.
MACHINE = ("device", "device_name", "threads", "processes")
GPUS_MACHINE = ("device", "device_name", "processes", "processor")
MAY_BE_UNKNOWN = ("processor",)
LOAD = 0.25  # cores kept busy by other programs: times of runs that differ by more do not compare
IDLE = 0.5  # of a machine's cores: a GPU's run is not slowed by others that leave it so many
SHORT = 60  # seconds of training: warming up and chance are too much of it to compare
# By so much of the time more may be saved than of the multiply-adds: normalisation and activation
# go too, and are not counted (docs/any_network.txt: 5.1 points at most, of 19 networks).
MARGIN = 0.05
TOP5 = ("test_top5_error_mean", "test_top5_error_std")
# columns of numbers that a row may be without
SAVING = ("time_saving", "time_saving_low", "time_saving_high")
MAY_LACK = (*TOP5, "test_error_std", "final_error_std", "train_seconds_std", *COLUMNS)
MAY_LACK += (*SAVING, "gates_saving")
MAY_LACK += ("train_macs_mean", "train_macs_std", "val_error_mean", "val_error_std")


def times_differ(runs: Sequence[Run]) -> str | None:
    """Why the times of these runs cannot be compared; None if they can."""
    work = [entry for run in runs for entry in work_on(run)]
    on_gpu = all(entry.get("device") == "cuda" for entry in work)
    for key in GPUS_MACHINE if on_gpu else MACHINE:
        found = sorted({str(entry.get(key) or "unknown") for entry in work})
        if len(found) > 1 or ("unknown" in found and key not in MAY_BE_UNKNOWN):
            return f"{key} {', '.join(found)}"
    if shared := [entry for entry in work if entry.get("per_gpu", 1) != 1]:
        return f"{shared[0]['per_gpu']} runs at once on a GPU"
    if (shortest := min(run.summary["train_seconds"] for run in runs)) < SHORT:
        return f"a training of {counted(round(shortest), 'second')}, less than {SHORT}"
    loads = [run.summary.get("other_load") for run in runs]
    if None in loads:
        return "load by other programs unknown"
    if max(loads) - min(loads) > LOAD and not (on_gpu and max(loads) <= IDLE * _cores(work)):
        return f"load by other programs {min(loads):.2f} to {max(loads):.2f} cores"
    return None


def _cores(work: Sequence[dict[str, Any]]) -> int:
    """The cores of the smallest machine; 0 where that is not known."""
    counts = [entry.get("cores") for entry in work]
    return min(count if type(count) is int else 0 for count in counts)


def time_saved(group: Group, reference: Group | None) -> dict[str, Any]:
    """What is saved of the seconds per epoch, over pairs of runs with the same seed.

    The mean and the 95 % interval of Student's t are those of the logarithms of their ratios.
    """
    pairs = pairs_of(group, reference)
    reason = times_differ([run for pair in pairs for run in pair]) if pairs else None
    saved: list[float | None] = [None, None, None]
    can_save = gates_save(group, reference)
    if pairs and reason is None:
        ratios = [a.summary["seconds_per_epoch"] / b.summary["seconds_per_epoch"] for a, b in pairs]
        logs = np.log(ratios)
        saved[0] = -math.expm1(logs.mean())
        if len(pairs) > 1:
            half = stats.t.ppf(0.975, len(pairs) - 1) * logs.std(ddof=1) / len(pairs) ** 0.5
            saved[1:] = -math.expm1(logs.mean() + half), -math.expm1(logs.mean() - half)
        if can_save is not None and (reason := _too_much(saved[0], can_save)):
            saved = [None, None, None]
    names = dict(zip(SAVING, saved, strict=True))
    return names | {"gates_saving": can_save, "times_not_comparable": reason or ""}


def _too_much(saved: float, can_save: float) -> str | None:
    """Why gates cannot have saved that: of the two rows, to the one in which they skip more."""
    whose = ""
    if can_save < 0:  # the reference's
        saved, can_save, whose = 1 - 1 / (1 - saved), 1 - 1 / (1 - can_save), " by the reference"
    if saved <= can_save + MARGIN:
        return None
    percent = f"{100 * saved:.1f} % saved{whose}", f"{100 * can_save:.1f} %"
    return f"{percent[0]}, more than the {percent[1]} that gates skip"


def gates_save(group: Group, reference: Group | None) -> float | None:
    """The share of the reference's multiply-adds that the gates skip in an epoch.

    Of its active blocks, where runs did not note the former. None where the rows differ in more
    than their schedule: then it is not gates alone that save time.
    """
    pairs = pairs_of(group, reference)
    if reference is None or not pairs:
        return None
    if without(group, "schedule") != without(reference, "schedule"):
        return None
    noted = ("training_macs", "epochs")
    known = all(run.summary.get(name) for pair in pairs for run in pair for name in noted)
    if not known and _granularity(group) == "sample":
        return 0.0
    ours, theirs = (
        sum(
            run.summary["training_macs"] / run.summary["epochs"]
            if known
            else run.summary["mean_active_blocks"]
            for run in side
        )
        for side in zip(*pairs, strict=True)
    )
    return 1 - ours / theirs if theirs else None


def _granularity(group: Group) -> str | None:
    first = group.runs[0]  # a network of one's own may have no such setting
    return first.summary.get("granularity") or first.config["model"].get("granularity")


def summary_row(group: Group, difference: Difference) -> dict[str, Any]:
    numbers = {}
    for column, name in (
        ("test_error", "test_error"),
        ("val_error", "val_error"),
        ("test_top5_error", "test_top5_error"),
        ("final_error", "final_test_error"),
        ("train_seconds", "train_seconds"),
        ("train_macs", "training_macs"),
    ):
        mean, std = group.mean_std(name)
        numbers |= {f"{column}_mean": mean, f"{column}_std": std}
    means = ("expected_active_blocks", "mean_active_blocks", "blocks", "seconds_per_epoch")
    expected, blocks = (group.mean_std(name)[0] for name in ("expected_active_blocks", "blocks"))
    return {
        **head(group),
        **numbers,
        **{name: group.mean_std(name)[0] for name in means},
        # masks (granularity sample) are laid on what was computed: they save nothing
        "expected_saving": 0.0 if _granularity(group) == "sample" else 1 - expected / blocks,
        **difference.columns(),
        **time_saved(group, difference.reference),
        "selection": "; ".join(sorted({run.summary["selection"] for run in group.runs})),
        "command": command(group),
        "commit": commits(group),
    }
