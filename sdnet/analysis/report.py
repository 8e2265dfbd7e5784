"""The report over runs: a table as text, CSV and Markdown, and figures; all from plain files.

    report.csv   a row per configuration, every number in full precision
    report.md    the same rounded, how it was computed, the commands, what was left out
    p_L heatmap curves time   figures that apply, .png and .pdf

Errors are percent, times seconds; savings and intervals are said in `_notes`.
"""

import io
import shlex
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from sdnet.analysis import report_plots
from sdnet.analysis.collect import (
    Group,
    LeftOut,
    ReportError,
    Run,
    collect_runs,
    find_references,
    group_runs,
    plain,
)
from sdnet.run import write_atomically

__all__ = ["Report", "ReportError", "write_report"]
MACHINE = ("device", "device_name", "threads", "processes")
LOAD = 0.25  # cores kept busy by other programs: times of runs that differ by more do not compare
TOP5 = ("test_top5_error_mean", "test_top5_error_std")
MAY_LACK = (*TOP5, "test_error_std", "final_error_std", "train_seconds_std", "time_saving")
MAY_LACK += ("difference_mean", "difference_low", "difference_high")
NONE = "\N{EN DASH}"
NOT_REPRODUCING = (
    "seed",
    "sweep",
    "retry_failed",
    "resume",
    "show",
)  # overrides that are no setting


@dataclass
class Report:
    """What was written to `out`.

    Attributes:
        table: a row per configuration, as in report.csv.
        figures: the PNG files; the PDF of each is beside it.
        left_out: the run folders that do not count, and why.
        runs: the completed runs that do.
    """

    table: pd.DataFrame
    figures: list[Path]
    left_out: list[LeftOut]
    out: Path
    runs: list[Run]


# -- statistics -----------------------------------------------------------------------------------


def _interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % interval of Student's t; the interval needs two values, the mean one."""
    if not values:
        return None, None, None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    error = statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def _work(run: Run) -> list[dict[str, Any]]:
    """The provenance of each process that trained a run; one that ended before that has noted no
    device."""
    entries = [{"processes": 1} | e for e in (run.provenance, *run.provenance.get("resumed", []))]
    return [entry for entry in entries if "device" in entry] or entries


def times_differ(runs: Sequence[Run]) -> str | None:
    """Why the times of these runs cannot be compared; None if they can."""
    for key in MACHINE:
        found = sorted({str(e.get(key) or "unknown") for run in runs for e in _work(run)})
        if "unknown" in found or len(found) > 1:
            return f"{key} {', '.join(found)}"
    loads = [run.summary.get("other_load") for run in runs]
    if None in loads:
        return "load by other programs unknown"
    if max(loads) - min(loads) > LOAD:
        return f"load by other programs {min(loads):.2f} to {max(loads):.2f} cores"
    return None


def _comparison(group: Group, reference: Group | None) -> dict[str, Any]:
    """Paired by seed: differences of the test error, and the time saved."""
    pairs = []
    if reference is not None and reference is not group:
        others = reference.by_seed
        pairs = [(run, others[run.seed]) for run in group.runs if run.seed in others]
    errors = [ours.summary["test_error"] - other.summary["test_error"] for ours, other in pairs]
    mean, low, high = _interval(errors)
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


def _row(group: Group, reference: Group | None) -> dict[str, Any]:
    numbers = {}
    for column, name in (
        ("test_error", "test_error"),
        ("test_top5_error", "test_top5_error"),
        ("final_error", "final_test_error"),
        ("train_seconds", "train_seconds"),
    ):
        mean, std = group.mean_std(name)
        numbers |= {f"{column}_mean": mean, f"{column}_std": std}
    means = ("expected_active_blocks", "mean_active_blocks", "blocks", "seconds_per_epoch")
    expected, blocks = (group.mean_std(name)[0] for name in ("expected_active_blocks", "blocks"))
    skips = group.runs[0].config["model"].get("granularity", "batch") != "sample"
    return {
        "id": group.id,
        **{key: "" if value is None else value for key, value in group.shown.items()},
        "n": len(group.runs),
        "seeds": " ".join(str(run.seed) for run in group.runs),
        **numbers,
        **{name: group.mean_std(name)[0] for name in means},
        # masks (granularity sample) are laid on what was computed: they save nothing
        "expected_saving": 1 - expected / blocks if skips else 0.0,
        **_comparison(group, reference),
        "selection": "; ".join(sorted({run.summary["selection"] for run in group.runs})),
        "command": _command(group),
        "commit": _commit(group),
    }


def _command(group: Group) -> str:
    """What to type to repeat all runs of a group, on whatever machine."""
    recorded = (run.provenance.get("overrides") for run in group.runs)
    overrides = next((found for found in recorded if found is not None), None)
    if overrides is None:
        return "unknown"
    names = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
    kept = [o for o, name in zip(overrides, names, strict=True) if name not in NOT_REPRODUCING]
    kept.append(f"seed={','.join(str(run.seed) for run in group.runs)}")
    first = _work(group.runs[0])[0]
    start, processes = ["python", "train.py"], first["processes"]
    if len(group.runs) > 1:
        start.append("-m")
        if processes > 1:
            kept += ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={processes}"]
            if first.get("device") == "cuda":
                kept.append(f"hydra.launcher.gpus_per_node={processes}")
    elif processes > 1:
        start = ["torchrun", f"--nproc-per-node={processes}", "train.py"]
    command = shlex.join([*start, *kept])
    own = sorted(_own_targets(group.runs[0].config))
    return f"SDNET_ALLOW_TARGETS={shlex.quote(','.join(own))} {command}" if own else command


def _own_targets(node: Any) -> set[str]:
    """Targets outside the project and torch: train.py takes them only when they are listed."""
    if isinstance(node, list):
        return set().union(*map(_own_targets, node))
    if not isinstance(node, dict):
        return set()
    target = node.get("_target_", "sdnet")
    ours = target.partition(".")[0] in ("sdnet", "torch", "torchvision")
    return set().union(*map(_own_targets, node.values())) | (set() if ours else {target})


def _commit(group: Group) -> str:
    """The short hashes of the code that computed a group's runs."""
    commits = {}
    for run in group.runs:
        for entry in _work(run):
            commit = entry.get("git_commit")
            dirty = "+dirty" if commit and entry.get("git_dirty") else ""
            commits[commit[:7] + dirty if commit else "unknown"] = None
    return " ".join(commits)


def _common(groups: Sequence[Group]) -> dict[str, Any]:
    """The settings that say the same in every row that has them, by dotted name."""
    names = dict.fromkeys(key for group in groups for key in group.settings)
    values = {n: {str(plain(g.settings[n])) for g in groups if n in g.settings} for n in names}
    shown = {key for name in groups[0].shown for key in (name, f"{name}._target_")}
    return {n: found.pop() for n, found in values.items() if len(found) == 1 and n not in shown}


# -- the table in words ---------------------------------------------------------------------------


def _mean_std(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def _difference(row: dict[str, Any]) -> str:
    if row["reference"] == row["id"]:
        return "reference"
    if not row["difference_n"]:
        return NONE
    text = f"{row['difference_mean']:+.2f}"
    if row["difference_n"] > 1:
        text += f" [{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
    return text if row["difference_n"] == row["n"] else f"{text} (n = {row['difference_n']})"


def _saving(row: dict[str, Any]) -> str:
    if row["times_not_comparable"]:
        return "not comparable"
    return NONE if row["time_saving"] is None else f"{100 * row['time_saving']:.1f} %"


def _rules(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rules by which the runs select their test error."""
    return sorted({rule for row in rows for rule in row["selection"].split("; ")})


def readable(rows: Sequence[dict[str, Any]], settings: Sequence[str]) -> list[dict[str, str]]:
    """The rows for print: what each column is called and says."""
    several_rules = len(_rules(rows)) > 1
    with_top5 = all(row[TOP5[0]] is not None for row in rows)
    return [
        {
            "id": row["id"],
            **{key: str(row[key]) for key in settings},
            "n": str(row["n"]),
            "seeds": row["seeds"],
            "test error (%)": _mean_std(row["test_error_mean"], row["test_error_std"]),
            **({"top-5 (%)": _mean_std(*(row[name] for name in TOP5))} if with_top5 else {}),
            "final test error (%)": _mean_std(row["final_error_mean"], row["final_error_std"]),
            "difference (points)": _difference(row),
            "active blocks expected": f"{row['expected_active_blocks']:.2f}",
            "measured": f"{row['mean_active_blocks']:.2f} of {row['blocks']:g}",
            "s/epoch": f"{row['seconds_per_epoch']:.3g}",
            "time saved": _saving(row),
            "block evaluations saved": f"{100 * row['expected_saving']:.1f} %",
            **({"selection": row["selection"]} if several_rules else {}),
        }
        for row in rows
    ]


PAPER = (
    "From Huang et al. (2016), Figure 8, on CIFAR-10, one run each, in those of these figures that "
    "are drawn: hollow grey markers in p_L (ResNet-110, read off the plot, about 0.05 either way) "
    "and a panel in heatmap (linear decay, as printed)."
)


def _notes(rows: Sequence[dict[str, Any]], reference: str, no_time_figure: str | None) -> list[str]:
    """How the numbers came about; a warning comes first."""
    rules = _rules(rows)
    notes = []
    if len(rules) > 1:
        notes.append(
            "WARNING: the runs do not select their test error by one rule, so the rows are not "
            f"comparable throughout: {' | '.join(rules)}."
        )
    else:
        notes.append(f"Test error of a run: that at its {rules[0]}; never minimised.")
    if not any(row["reference"] for row in rows):
        reference += " (there is none)"
    notes += [
        "n runs (seeds): mean ± sample standard deviation over seeds (n - 1 in the denominator).",
        f"Difference: to {reference}, in percentage points, the mean over runs paired by seed with "
        "the 95 % interval of Student's t; n is given where it is not that of the row.",
        "Time saved: 1 - the ratio of the seconds per epoch of the same pairs. Not comparable: "
        "device, processor, threads, processes or the load by other programs (by more than "
        f"{LOAD:g} cores) differ or are unknown.",
        "Block evaluations saved: 1 - expected active blocks / blocks; 0 with masks per image, "
        "which save nothing.",
    ]
    reasons = [
        f"{r['id']} ({r['times_not_comparable']})" for r in rows if r["times_not_comparable"]
    ]
    if reasons:
        notes.append(f"Times not comparable with those of the reference: {', '.join(reasons)}.")
    if no_time_figure:
        notes.append(f"No figure of error against time: {no_time_figure}.")
    return notes


def _markdown(
    title: str,
    printed: Sequence[dict[str, str]],
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str],
    common: dict[str, Any],
    figures: Sequence[Path],
    left_out: Sequence[LeftOut],
) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    parts = [f"# {title}", ""]
    parts += [line(list(printed[0])), line(["---"] * len(printed[0]))]
    parts += [line(list(row.values())) for row in printed]
    parts += ["", *(f"- {note}" for note in notes), ""]
    if figures:
        parts += ["## Figures", ""]
        for path in figures:
            parts += [f"![{path.stem}]({path.name})", "", f"[{path.stem}.pdf]({path.stem}.pdf)", ""]
    parts += ["## Commands", ""]
    for row in rows:
        parts += [f"`{row['id']}` (commit {row['commit']}):", "", f"    {row['command']}", ""]
    parts += ["## Settings of all rows", ""]
    parts += [", ".join(f"{key} {value}" for key, value in common.items()), ""]
    parts += [f"## Left out ({len(left_out)})", ""]
    parts += [f"- `{item.folder}`: {item.reason}" for item in left_out] or ["None."]
    return "\n".join(parts).rstrip() + "\n"


# -- output ---------------------------------------------------------------------------------------


def _count(items: Sequence[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _print(console: Console, *texts: str) -> None:
    for text in texts:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_left_out(console: Console, left_out: Sequence[LeftOut]) -> None:
    if left_out:
        _print(console, f"\nleft out ({len(left_out)}):")
        _print(console, *(f"  {item.folder}: {item.reason}" for item in left_out))


def _print_table(console: Console, title: str, printed: Sequence[dict[str, str]]) -> None:
    """On a terminal as many tables below each other as its width asks for, each with the ids;
    elsewhere one, as wide as it needs."""
    first, *others = printed[0]
    words = {name: max(map(len, name.split())) for name in printed[0]}
    widths = {name: max(words[name], *(len(row[name]) for row in printed)) for name in words}
    tables = [[first]]
    for name in others:
        width = 1 + sum(widths[column] + 3 for column in (*tables[-1], name))
        if console.is_terminal and width > console.width and len(tables[-1]) > 1:
            tables.append([first])
        tables[-1].append(name)
    _print(console, title)
    for columns in tables:
        table = Table()
        for name in columns:
            table.add_column(Text(textwrap.fill(name, widths[name])), overflow="fold")
        for row in printed:
            table.add_row(*(Text(row[name]) for name in columns))
        if console.is_terminal:
            console.print(table)
        else:
            wide = Console(file=io.StringIO(), width=100_000)
            wide.print(table)
            _print(console, wide.file.getvalue().rstrip())


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    baseline: str | None = None,
    paper: bool = False,
    console: Console | None = None,
) -> Report | None:
    """Reports on all runs below the folders: prints a table, writes it, and draws the figures.

    Args:
        out: where to write; None: `report/` in the first folder.
        baseline: what rows are compared with: the id of a row, or `key=value` (the row with that
            value that is equal in everything else); None: constant depth, where there is any.
        paper: whether the figures also show the paper's results.
        console: where to print; None: the standard output.

    Returns:
        None where no run is completed: then nothing is written.

    Raises:
        ReportError: a folder is not there or holds no runs, or no row is such a baseline.
    """
    console = console or Console()
    folders = [Path(folder) for folder in folders]
    runs, left_out = collect_runs(folders)
    if not runs:
        _print(console, "no completed run: nothing is written")
        _print_left_out(console, left_out)
        return None
    groups = group_runs(runs)
    words, references = find_references(groups, baseline)
    rows = [_row(group, references[group.id]) for group in groups]
    no_time_figure = times_differ(runs)
    if no_time_figure:
        no_time_figure = f"not all times are comparable ({no_time_figure})"
    settings = list(groups[0].shown)
    printed = readable(rows, settings)
    notes = _notes(rows, words, no_time_figure)
    if paper:
        notes.append(PAPER)
    title = f"{_count(runs, 'run')} in {_count(rows, 'row')}; difference: to {words}"

    out = Path(out) if out is not None else folders[0] / "report"
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).astype(dict.fromkeys(MAY_LACK, float))  # NaN, never None
    figures = report_plots.draw(groups, out, paper, no_time_figure is None)
    write_atomically(out / "report.csv", table.to_csv(index=False))
    text = _markdown(title, printed, rows, notes, _common(groups), figures, left_out)
    write_atomically(out / "report.md", text)

    _print_table(console, title, printed)
    _print(console, *notes, "\nto repeat a row:")
    _print(console, *(f"  {row['id']}  {row['command']}  # {row['commit']}" for row in rows))
    _print_left_out(console, left_out)
    names = ["report.csv", "report.md", *(path.name for path in figures)]
    _print(console, f"\nwritten to {out}: {' '.join(names)}")
    return Report(table, figures, left_out, out, runs)
