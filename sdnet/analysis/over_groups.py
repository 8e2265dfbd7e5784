"""The tables of several runs as one: for each group of seeds mean and standard deviation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sdnet.analysis.groups import Group, head, mean_std

Rows = Sequence[Mapping[str, Any]]
SAID_BY_ITSELF = ("model", "dataset")  # settings whose value needs no name
TWO_DIGITS = ("error", "ece", "auarc")  # in the names of columns that are percent


def label(group: Group) -> str:
    """What a figure calls a group."""
    words = ["constant depth" if group.is_baseline else group.schedule.replace("_", " ")]
    words += [
        str(value) if key in SAID_BY_ITSELF else f"{key.rpartition('.')[2]} {value}"
        for key, value in group.shown.items()
        if value is not None
        and key != "schedule"
        and not (group.is_baseline and key.startswith("schedule."))
    ]
    return f"{', '.join(words)} (n = {len(group.runs)})"


def over_groups(groups: Sequence[Group], tables: Mapping[Path, Rows]) -> list[dict[str, Any]]:
    """For each group its runs' rows put together, those in the same place: see `together`.

    Args:
        tables: the rows of each run, by its folder.
    """
    return [
        head(group) | row
        for group in groups
        for row in together([tables[run.folder] for run in group.runs])
    ]


def together(tables: Sequence[Rows]) -> list[dict[str, Any]]:
    """The rows of several runs as one table: of numbers with a fraction `<name>_mean` and
    `<name>_std`, of all else what the runs agree on. Nothing where their numbers of rows differ."""
    if len(set(map(len, tables))) > 1:
        return []
    result = []
    for rows in zip(*tables, strict=True):
        found: dict[str, Any] = {}
        for name in rows[0]:
            values = [row.get(name) for row in rows]
            if name == "macs" or any(isinstance(value, float) for value in values):
                found[f"{name}_mean"], found[f"{name}_std"] = mean_std(values)
            else:
                found[name] = values[0] if len(set(values)) == 1 else None
        result.append(found)
    return result


def means(tables: Sequence[Rows]) -> list[dict[str, Any]]:
    """The same with the means alone, by the names of the runs' own columns."""
    return [
        {
            name.removesuffix("_mean"): "" if value is None else value
            for name, value in row.items()
            if not name.endswith("_std")
        }
        for row in together(tables)
    ]


def printed(rows: Rows) -> list[dict[str, str]]:
    """Rows for print: rounded, with `mean ± std` as one, without columns that say nothing."""
    named = {name: None for row in rows for name, value in row.items() if value is not None}
    names = [name for name in named if not name.endswith("_std")]
    return [{name.removesuffix("_mean"): _cell(row, name) for name in names} for row in rows]


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, std = row.get(name), row.get(f"{name.removesuffix('_mean')}_std")
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, str) or "." in name:  # a setting's
        return str(value)
    digits = ".2f" if any(word in name for word in TWO_DIGITS) else ".4f"
    digits = ",.0f" if "macs" in name or isinstance(value, int) else digits
    text = format(value, digits)
    return text if pd.isna(std) else f"{text} ± {format(std, digits)}"
