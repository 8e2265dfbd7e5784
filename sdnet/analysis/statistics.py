"""The numbers of a report: intervals over pairs of runs, times that compare, a row for a group."""

import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

from sdnet.analysis.collect import Run, work_on
from sdnet.analysis.groups import Group
from sdnet.analysis.repeat import command, commits

# What has to be the same for times to compare. A GPU's work is started by one thread, whose
# processor was not noted at first.
MACHINE = ("device", "device_name", "threads", "processes")
GPUS_MACHINE = ("device", "device_name", "processes", "processor")
MAY_BE_UNKNOWN = ("processor",)
LOAD = 0.25  # cores kept busy by other programs: times of runs that differ by more do not compare
IDLE = 0.5  # of a machine's cores: a GPU's run is not slowed by others that leave it so many
TOP5 = ("test_top5_error_mean", "test_top5_error_std")
# columns of numbers that a row may be without
MAY_LACK = (*TOP5, "test_error_std", "final_error_std", "train_seconds_std", "time_saving")
MAY_LACK += ("difference_mean", "difference_low", "difference_high")
MAY_LACK += ("train_macs_mean", "train_macs_std", "val_error_mean", "val_error_std")


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % interval of Student's t; the interval needs two values, the mean one."""
    if not values:
        return None, None, None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    error = statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


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


def comparison(group: Group, reference: Group | None) -> dict[str, Any]:
    """Paired by seed: differences of the test error, and the time saved."""
    pairs = []
    if reference is not None and reference is not group:
        others = reference.by_seed
        pairs = [(run, others[run.seed]) for run in group.runs if run.seed in others]
    errors = [ours.summary["test_error"] - other.summary["test_error"] for ours, other in pairs]
    mean, low, high = interval(errors)
    saving, reason = None, None
    if pairs:
        reason = times_differ([run for pair in pairs for run in pair])
        if reason is None:
            seconds = [[run.summary["seconds_per_epoch"] for run in pair] for pair in pairs]
            saving = 1 - sum(ours for ours, _ in seconds) / sum(other for _, other in seconds)
    return {
        "reference": reference.id if reference is not None else "",
        "difference_mean": mean,
        "difference_low": low,
        "difference_high": high,
        "difference_n": len(pairs),
        "time_saving": saving,
        "times_not_comparable": reason or "",
    }


def summary_row(group: Group, reference: Group | None) -> dict[str, Any]:
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
    first = group.runs[0]  # a network of one's own may have no such setting
    granularity = first.summary.get("granularity") or first.config["model"].get("granularity")
    return {
        "id": group.id,
        **{key: "" if value is None else value for key, value in group.shown.items()},
        "n": len(group.runs),
        "seeds": " ".join(str(run.seed) for run in group.runs),
        **numbers,
        **{name: group.mean_std(name)[0] for name in means},
        # masks (granularity sample) are laid on what was computed: they save nothing
        "expected_saving": 0.0 if granularity == "sample" else 1 - expected / blocks,
        **comparison(group, reference),
        "selection": "; ".join(sorted({run.summary["selection"] for run in group.runs})),
        "command": command(group),
        "commit": commits(group),
    }
