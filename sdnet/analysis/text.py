"""A report in words: the table as it is printed and in Markdown, and how its numbers came about."""

import html
import io
import math
import re
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdnet.analysis.collect import LeftOut
from sdnet.analysis.columns import rounded
from sdnet.analysis.difference_text import Block
from sdnet.analysis.groups import Group, plain
from sdnet.analysis.statistics import LOAD, MARGIN, SHORT, TOP5
from sdnet.runs.shown import visible

FORMULA = ("=", "+", "-", "@", "\t", "\r", *"\uff1d\uff0b\uff0d\uff20")  # in full width too
NONE = "\N{EN DASH}"


def _mean_std(mean: float | None, std: float | None) -> str:
    if mean is None:
        return NONE
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def _difference(row: dict[str, Any]) -> str:
    if row["reference"] == row["id"]:
        return "reference"
    if not row["difference_n"]:
        return NONE
    text = f"{row['difference_mean']:+z.2f}"
    if row["difference_low"] is not None:
        text += f" [{row['difference_low']:+z.2f}, {row['difference_high']:+z.2f}]"
    return text if row["difference_n"] == row["n"] else f"{text} (n = {row['difference_n']})"


def _saving(row: dict[str, Any]) -> str:
    if row["times_not_comparable"]:
        return "not comparable"
    if row["time_saving"] is None:
        return NONE
    text = f"{100 * row['time_saving']:z.1f} %"
    if row["time_saving_low"] is not None:
        text += f" [{100 * row['time_saving_low']:z.0f}, {100 * row['time_saving_high']:z.0f}]"
    return text


def _macs(count: float | None) -> str:
    return NONE if count is None else f"{count:.3e}".replace("e+", "e")


def _seconds(mean: float, std: float | None = None) -> str:
    """Three digits that count, and the deviation to the same place."""
    digits = max(0, 2 - math.floor(math.log10(mean))) if 0 < mean < math.inf else 0
    text = f"{mean:.{digits}f}"
    return text if pd.isna(std) else f"{text} ± {std:.{digits}f}"


def _rules(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rules by which the runs select their test error."""
    return sorted({rule for row in rows for rule in row["selection"].split("; ")})


def readable(rows: Sequence[dict[str, Any]], settings: Sequence[str]) -> list[dict[str, str]]:
    """The rows for print: what each column is called and says, the results first."""
    columns = {key: rounded([row[key] for row in rows]) for key in settings}
    several_rules = len(_rules(rows)) > 1
    with_top5 = all(row[TOP5[0]] is not None for row in rows)
    return [
        {
            "id": row["id"],
            "test error (%)": _mean_std(row["test_error_mean"], row["test_error_std"]),
            **({"top-5 (%)": _mean_std(*(row[name] for name in TOP5))} if with_top5 else {}),
            "difference (points)": _difference(row),
            "validation error (%)": _mean_std(row["val_error_mean"], row["val_error_std"]),
            **{key: texts[i] for key, texts in columns.items()},
            "n": str(row["n"]),
            "seeds": row["seeds"],
            "final test error (%)": _mean_std(row["final_error_mean"], row["final_error_std"]),
            "active blocks expected": f"{row['expected_active_blocks']:.2f}",
            "measured": f"{row['mean_active_blocks']:.2f} of {row['blocks']:g}",
            "multiply-adds": _macs(row["train_macs_mean"]),
            "training (s)": _seconds(row["train_seconds_mean"], row["train_seconds_std"]),
            "s/epoch": _seconds(row["seconds_per_epoch"]),
            "time saved": _saving(row),
            "block evaluations saved": f"{100 * row['expected_saving']:.1f} %",
            **({"selection": row["selection"]} if several_rules else {}),
        }
        for i, row in enumerate(rows)
    ]


PAPER = (
    "From Huang et al. (2016), Figure 8, on CIFAR-10, one run each, in those of these figures that "
    "are drawn: hollow grey markers in p_L (ResNet-110, read off the plot, about 0.05 either way) "
    "and a panel in heatmap (linear decay, as printed)."
)


def notes(
    rows: Sequence[dict[str, Any]],
    reference: str,
    no_time_figure: str | None,
    columns: Collection[str],
) -> list[str]:
    """How the numbers of these columns came about; a warning comes first."""
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
    notes.append(
        "n runs (seeds): mean ± sample standard deviation over seeds (n - 1 in the denominator)."
    )
    about = {
        "difference (points)": f"Difference: to {reference}, in percentage points, the mean over "
        "runs paired by seed with the 95 % interval of Student's t; n is given where it is not "
        "that of the row.",
        "time saved": "Time saved: how much shorter an epoch of training is, without evaluations: "
        "the mean over the same pairs and its 95 % interval. Not comparable: a training shorter "
        f"than {SHORT} seconds; more is saved than gates skip, by {100 * MARGIN:g} points; or "
        "device, processor, threads, processes or the load by other programs (by more than "
        f"{LOAD:g} cores) differ or are unknown. On a GPU threads do not count, nor does a load "
        "that leaves half of the cores idle.",
        "multiply-adds": "Multiply-adds: of the forward passes of a whole training, as expected.",
        "block evaluations saved": "Block evaluations saved: 1 - expected active blocks / blocks; "
        "0 with masks per image, which save nothing.",
    }
    notes += [said for column, said in about.items() if column in columns]
    reasons = [
        f"{r['id']} ({r['times_not_comparable']})" for r in rows if r["times_not_comparable"]
    ]
    if reasons and "time saved" in columns:
        notes.append(f"Times not comparable with those of the reference: {', '.join(reasons)}.")
    if no_time_figure:
        notes.append(f"No figure of error against time: {no_time_figure}.")
    return notes


def escaped(text: str) -> str:
    """The text in Markdown, in which nothing of it is mark-up, a link or HTML."""
    text = html.escape(text, quote=False)
    return re.sub(r"^#|[\\`*~]|\](?=[(\[:])|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def spreadsheet(table: pd.DataFrame) -> str:
    """The table as CSV in which no text is a formula: a quote stands before what would begin one.

    https://owasp.org/www-community/attacks/CSV_Injection
    """

    def plain(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell

    return table.map(plain).rename(columns=plain).to_csv(index=False)


def markdown(
    title: str,
    printed: Sequence[dict[str, str]],
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str],
    common: dict[str, Any],
    figures: Sequence[Path],
    left_out: Sequence[LeftOut],
    same: Sequence[str] = (),
    differences: Sequence[Block] = (),
) -> str:
    parts = [f"# {escaped(title)}", ""]
    parts += [*(f"- {escaped(each)}" for each in same), ""] if same else []
    parts += markdown_table(printed)
    parts += ["", *(f"- {escaped(note)}" for note in notes), ""]
    for number, block in enumerate(differences):
        parts += [] if number else ["## Differences", ""]
        parts += [f"### {escaped(block.title)}", "", *(f"- {escaped(s)}" for s in block.lines), ""]
    if figures:
        parts += ["## Figures", ""]
        for path in figures:
            parts += [f"![{path.stem}]({path.name})", "", f"[{path.stem}.pdf]({path.stem}.pdf)", ""]
    parts += ["## Commands", ""]
    for row in rows:
        parts += [f"`{row['id']}` (commit {escaped(row['commit'])}):", ""]
        parts += [f"    {row['command']}", ""]
    parts += ["## Settings of all rows", ""]
    parts += [escaped(", ".join(f"{key} {value}" for key, value in common.items())), ""]
    parts += [f"## Left out ({len(left_out)})", ""]
    for item in left_out:
        folder, fence = visible(str(item.folder)), "`"
        while fence in folder:
            fence += "`"
        folder = folder if fence == "`" else f" {folder} "
        parts += [f"- {fence}{folder}{fence}: {escaped(item.reason)}"]
    parts += [] if left_out else ["None."]
    return "\n".join(parts).rstrip() + "\n"


def markdown_table(printed: Sequence[dict[str, str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escaped(cell).replace("|", "\\|") for cell in cells) + " |"

    head = [line(list(printed[0])), "|" + " --- |" * len(printed[0])]
    return head + [line(list(row.values())) for row in printed]


def print_lines(console: Console, *texts: str) -> None:
    for text in texts:
        text = visible(text, keep="\n")
        console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_left_out(console: Console, left_out: Sequence[LeftOut]) -> None:
    if left_out:
        print_lines(console, f"\nleft out ({len(left_out)}):")
        print_lines(console, *(f"  {said(item)}" for item in left_out))


def said(item: LeftOut) -> str:
    """A run that was left out, and why."""
    return f"{visible(str(item.folder))}: {item.reason}"


def print_table(console: Console, title: str, printed: Sequence[dict[str, str]]) -> None:
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
    print_lines(console, title)
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
            print_lines(console, wide.file.getvalue().rstrip())


def common_settings(groups: Sequence[Group]) -> dict[str, Any]:
    """The settings that say the same in every row that has them, by dotted name."""
    names = dict.fromkeys(key for group in groups for key in group.settings)
    values = {n: {str(plain(g.settings[n])) for g in groups if n in g.settings} for n in names}
    shown = {key for name in groups[0].shown for key in (name, f"{name}._target_")}
    return {n: found.pop() for n, found in values.items() if len(found) == 1 and n not in shown}
