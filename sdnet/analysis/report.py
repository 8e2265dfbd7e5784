"""The report over runs: a table as text, CSV and Markdown, and figures; all from plain files.

    report.csv   a row per configuration, every number in full precision
    report.md    the same rounded, how it was computed, the commands, what was left out
    report.html  that again, in one file with the figures inside
    p_L heatmap curves time compute   figures that apply, .png and .pdf

Errors are percent, times seconds; savings and intervals are said in `notes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from sdnet.analysis import difference_text, figure_data, figures, text
from sdnet.analysis.collect import LeftOut, ReportError, Run, collect_runs
from sdnet.analysis.columns import apart, chosen
from sdnet.analysis.differences import compare
from sdnet.analysis.groups import group_runs
from sdnet.analysis.page import page
from sdnet.analysis.references import find_references
from sdnet.analysis.statistics import MAY_LACK, summary_row, times_differ
from sdnet.runs.files import write_atomically
from sdnet.runs.shown import counted, visible

__all__ = ["Report", "ReportError", "write_report"]


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


def _usable(runs: list[Run], left_out: list[LeftOut]) -> tuple[list[Run], list[LeftOut]]:
    """The same, but that a run of which nothing can be said alone is left out."""
    kept = []
    for run in runs:
        try:
            group = group_runs([run])
            summary_row(group[0], compare(group, {})[group[0].id])
            times_differ([run])
            figure_data.check(group)
            kept.append(run)
        except Exception as error:  # what nobody thought of costs no other run
            reason = f"unreadable: {type(error).__name__}: {visible(str(error))}"
            left_out.append(LeftOut(run.folder, reason))
    return kept, left_out


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    baseline: str | None = None,
    paper: bool = False,
    console: Console | None = None,
    style: str = "screen",
    columns: Sequence[str] | None = None,
) -> Report | None:
    """Reports on all runs below the folders: prints a table, writes it, and draws the figures.

    Args:
        out: where to write; None: `report/` in the first folder.
        baseline: what rows are compared with: the id of a row, or `key=value` (the row with that
            value that is equal in everything else); None: constant depth, where there is any.
        paper: whether the figures also show the paper's results.
        console: where to print; None: the standard output.
        style: of the figures: `screen`, or `paper`, a column of a page in small type.
        columns: that the table has, by name; None: those that do not say the same in all rows.

    Returns:
        None where no run is completed: then nothing is written.

    Raises:
        ReportError: a folder is not there or holds no runs, no row is such a baseline, or there is
            no such column.
    """
    console = console or Console(markup=False, emoji=False)  # texts are shown as they are
    folders = [Path(folder) for folder in folders]
    runs, left_out = _usable(*collect_runs(folders))
    if not runs:
        text.print_lines(console, "no completed run: nothing is written")
        text.print_left_out(console, left_out)
        return None
    groups = group_runs(runs)
    words, references = find_references(groups, baseline)
    found = compare(groups, references)
    rows = [summary_row(group, found[group.id]) for group in groups]
    blocks = difference_text.blocks(groups, found, rows)
    no_time_figure = times_differ(runs) or next(
        (row["times_not_comparable"] for row in rows if row["times_not_comparable"]), None
    )
    if no_time_figure:
        no_time_figure = f"not all times are comparable ({no_time_figure})"
    printed = text.readable(rows, list(groups[0].shown))
    printed, same = apart(printed) if columns is None else chosen(printed, columns)
    same = {key: value for key, value in same.items() if value != text.NONE}
    above = [f"{key}: {value}" for key, value in same.items()]
    notes = text.notes(rows, words, no_time_figure, {*printed[0], *same})
    if paper:
        notes.append(text.PAPER)
    title = f"{counted(len(runs), 'run')} in {counted(len(rows), 'row')}; difference: to {words}"

    if out is None:
        out = folders[0] / "report"
        if out.is_symlink() or (out / "wandb").is_symlink():  # of a folder from elsewhere
            raise ReportError(f"{out} is a link, or wandb in it: --out names another folder")
    out = Path(out)
    table = pd.DataFrame(rows).astype(dict.fromkeys(MAY_LACK, float))  # NaN, never None
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = figures.draw(groups, out, paper, no_time_figure is None, style)
        write_atomically(out / "report.csv", text.spreadsheet(table))
        common = text.common_settings(groups)
        parts = (title, printed, rows, notes, common, drawn, left_out)
        write_atomically(out / "report.md", text.markdown(*parts, above, blocks))
        sections = [(f"Difference: {block.title}", block.lines) for block in blocks]
        if left_out:
            sections.append((f"Left out ({len(left_out)})", list(map(text.said, left_out))))
        commands = {f"{row['id']} (commit {row['commit']})": row["command"] for row in rows}
        settings = [f"{key}: {value}" for key, value in common.items()]
        parts = (title, above, printed, notes, drawn, sections, commands, settings)
        write_atomically(out / "report.html", page(*parts))
    except OSError as error:
        where = f"{out} cannot be written ({error.strerror}): --out names another folder"
        raise ReportError(where) from error

    text.print_table(console, "\n".join([title, *above]), printed)
    text.print_lines(console, *notes, *difference_text.short(blocks), "\nto repeat a row:")
    text.print_lines(console, *(f"  {r['id']}  {r['command']}  # {r['commit']}" for r in rows))
    text.print_left_out(console, left_out)
    names = ["report.csv", "report.md", "report.html", *(path.name for path in drawn)]
    text.print_lines(console, f"\nwritten to {out}: {' '.join(names)}")
    return Report(table, drawn, left_out, out, runs)
