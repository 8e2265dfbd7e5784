"""`python -m sdnet evaluate`: what a run's network says of each image, in numbers and figures.

    evaluation.json   everything, for programs
    full_depth.csv    a row per part: loss, errors, calibration
    per_class.csv  confusion.csv  reliability.csv
    reliability confusion   figures, .png and .pdf
    and what each mode adds, see `sdnet.launch.modes`

Of several runs the same tables more, a row of mean and std for each configuration: evaluation.csv
and evaluation.md are those at full depth.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from sdnet.analysis import figure_evaluation as figures
from sdnet.analysis import text
from sdnet.analysis.collect import LeftOut, Run, collect_runs
from sdnet.analysis.figure_style import colors_of
from sdnet.analysis.groups import Group, group_runs, head
from sdnet.analysis.measures import confusion_rows, measure, per_class, reliability, right
from sdnet.analysis.over_groups import label, means, over_groups, printed
from sdnet.analysis.probes.averages import compare, ensemble
from sdnet.analysis.probes.figures import About
from sdnet.config.errors import ConfigError, one_line
from sdnet.launch.modes import MODES, Rows, Tables
from sdnet.launch.opened import DataGone, Opened
from sdnet.runs.files import write_atomically
from sdnet.runs.folder import RunFolder
from sdnet.runs.predictions import Predictions
from sdnet.runs.shown import counted, visible

LONG = ("per_class", "confusion", "reliability", "lesion_sets", "order")  # to be read in files
UNITS = "Errors, ece, adaptive_ece and auarc are percent; loss is in nats, brier from 0 to 2."


@dataclass
class Evaluated:
    """What was found of a run, and where it was written."""

    run: Run
    out: Path
    test: Predictions
    of: str  # of which images and checkpoint what the modes gave is
    tables: Tables = field(default_factory=dict)


def evaluate(
    folders: Sequence[Path],
    out: Path | None = None,
    modes: Mapping[str, int] | None = None,
    seed: int = 0,
    console: Console | None = None,
    **how: Any,
) -> None:
    """Evaluates every completed run below some folders; of several runs also their groups.

    Args:
        out: where to write; None: `evaluation/` in each run, and in the first folder. Of several
            runs each has a folder in it, by its name.
        modes: of MODES, with their numbers.
        seed: of what is random in them.
        how: see `Opened`.

    Raises:
        ValueError: nothing could be evaluated, or written.
    """
    console = console or Console(markup=False, emoji=False)  # texts are shown as they are
    runs, left_out = collect_runs(folders)
    several = len(runs) + len(left_out) > 1
    done: list[Evaluated] = []
    for run in runs:
        try:
            opened = Opened(RunFolder(run.folder), seed=seed, **how)
            place = opened.run.path / "evaluation" if out is None else out
            place = place / opened.name if out is not None and several else place
            done.append(_evaluated(run, opened, place, modes or {}, seed))
        except Exception as error:  # what nobody thought of costs no other run
            left_out.append(LeftOut(run.folder, _reason(error)))
            continue
        _tell(console, done[-1], several)
    if not done and not several:
        raise ValueError(f"{left_out[0].folder}: {left_out[0].reason}")
    if several and done:
        first = Path(folders[0])
        beside = first.parent if RunFolder(first).holds_run() else first
        place = beside / "evaluation" if out is None else out
        _write_groups(console, done, place, modes or {})
    text.print_left_out(console, left_out)
    if not done:
        raise ValueError(f"nothing could be evaluated below {', '.join(map(str, folders))}")


def _reason(error: Exception) -> str:
    known = isinstance(error, ConfigError | ValueError | OSError)
    return visible(("" if known else f"{type(error).__name__}: ") + one_line(error))


def _evaluated(
    run: Run, opened: Opened, out: Path, modes: Mapping[str, int], seed: int
) -> Evaluated:
    """Computes and writes what is asked for of one run: full depth first."""
    opened.run.check_places()
    parts, names = opened.predictions, _class_names(opened)
    out.mkdir(parents=True, exist_ok=True)
    images = len(opened.subject.parts["test"]) if modes else len(parts["test"])
    of = f"{images:,} test images, {opened.checkpoint} checkpoint"
    found = Evaluated(run, out, parts["test"], of)
    found.tables = _at_full_depth(parts, names)
    title = f"{opened.name}, {opened.checkpoint} checkpoint"
    figures.plot_reliability(parts, title, out / "reliability")
    figures.plot_confusion(parts["test"], names, f"{title}\ntest", out / "confusion")
    _write(found.tables, out)
    for name, number in modes.items():
        tables = MODES[name].compute(opened.subject, number, seed)
        MODES[name].draw({opened.name: tables}, About(of), out)
        _write(tables, out)
        found.tables |= tables
    facts = {
        "run": opened.name,
        "identity": opened.run.summary().get("identity"),
        "checkpoint": opened.checkpoint,
        "orders": {part: predictions.order for part, predictions in parts.items()},
    }
    write_atomically(out / "evaluation.json", json.dumps(facts | found.tables, indent=2) + "\n")
    return found


def _class_names(opened: Opened) -> list[str]:
    """Their numbers where the data are gone."""
    try:
        return [visible(name) for name in opened.data.classes]
    except DataGone:
        return [str(number) for number in range(opened.predictions["test"].classes)]


def _at_full_depth(parts: Mapping[str, Predictions], names: list[str]) -> Tables:
    def table(rows_of: Any) -> Rows:
        return [{"part": part} | row for part, found in parts.items() for row in rows_of(found)]

    return {
        "full_depth": table(lambda found: [{"images": len(found)} | measure(found)]),
        "per_class": table(lambda found: per_class(found, names)),
        "confusion": table(lambda found: confusion_rows(found, names)),
        "reliability": table(
            lambda found: [b._asdict() for b in reliability(found.confidence, right(found))]
        ),
    }


def _write(tables: Tables, out: Path) -> None:
    for name, rows in tables.items():
        write_atomically(out / f"{name}.csv", text.spreadsheet(pd.DataFrame(rows)))


def _tell(console: Console, found: Evaluated, several: bool) -> None:
    """Of one of several runs in a line."""
    folder = found.run.folder
    if several:
        (test,) = (row for row in found.tables["full_depth"] if row["part"] == "test")
        said = f"test error {test['error']:.2f} %, ece {test['ece']:.2f} %"
        text.print_lines(console, f"{folder}: {said}")
        return
    for name, rows in found.tables.items():
        if name not in LONG:
            said = name.replace("_", " ") + f": {found.of}" * (name != "full_depth")
            text.print_table(console, f"{folder}, {said}", printed(rows))
    _tell_files(console, found.out)


def _tell_files(console: Console, out: Path) -> None:
    names = " ".join(sorted(path.name for path in out.iterdir() if path.is_file()))
    text.print_lines(console, UNITS, f"\nin {out}: {names}")


def _write_groups(
    console: Console, done: list[Evaluated], out: Path, modes: Mapping[str, int]
) -> None:
    """Prints and writes the tables of all runs by groups, and draws the modes' figures."""
    if out.is_symlink():  # of a folder from elsewhere
        raise ValueError(f"{out} is a link: --out names another folder")
    out.mkdir(parents=True, exist_ok=True)
    groups = group_runs([found.run for found in done])
    by_folder = {found.run.folder: found for found in done}
    tables: Tables = {}
    for name in done[0].tables:
        if name in ("confusion", "reliability"):  # whose rows are of other cells in each run
            continue
        of_runs = {folder: found.tables.get(name, []) for folder, found in by_folder.items()}
        tables["evaluation" if name == "full_depth" else name] = over_groups(groups, of_runs)
    if "monte_carlo" in modes:
        try:
            tables["ensemble"] = [row for group in groups for row in _ensemble(group, by_folder)]
        except (ConfigError, ValueError) as error:
            text.print_lines(console, f"no ensemble of seeds: {error}")
    _write(tables, out)
    _draw_groups(groups, by_folder, out, modes)
    counts = f"{counted(len(done), 'run')} in {counted(len(groups), 'group')}"
    title = f"{counts}, full depth: mean ± std"
    page = [f"# {text.escaped(title)}", ""]
    page += [*text.markdown_table(printed(tables["evaluation"])), "", UNITS, ""]
    write_atomically(out / "evaluation.md", "\n".join(page))
    text.print_table(console, title, printed(tables["evaluation"]))
    _tell_files(console, out)


def _ensemble(group: Group, by_folder: Mapping[Path, Evaluated]) -> Rows:
    """The seeds of a group as one network; none where there is one."""
    members = [by_folder[run.folder].test for run in group.runs]
    if len(members) == 1:
        return []
    return [head(group) | row for row in compare({"ensemble of the seeds": ensemble(members)})]


def _draw_groups(
    groups: Sequence[Group],
    by_folder: Mapping[Path, Evaluated],
    out: Path,
    modes: Mapping[str, int],
) -> None:
    for name in modes:
        named = {}
        for group in groups:
            of_runs = [by_folder[run.folder].tables for run in group.runs]
            made = {table: means([tables[table] for tables in of_runs]) for table in of_runs[0]}
            named[label(group)] = made
        of = next(iter(by_folder.values())).of
        several = any(len(group.runs) > 1 for group in groups)
        said = f"{'means over n seeds, ' * several}{of}"
        MODES[name].draw(named, About(said, colors_of(groups)), out)
