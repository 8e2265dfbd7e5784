"""Which columns of a report's table are shown: those asked for, or those that tell rows apart."""

from collections.abc import Sequence

from sdnet.analysis.collect import ReportError

Rows = Sequence[dict[str, str]]
KEPT = ("id", "test error (%)", "validation error (%)", "difference (points)")  # whatever they say


def chosen(printed: Rows, names: Sequence[str]) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The rows with the columns of these names, after the id; units may be left out.

    Over how many runs a mean is has to be said: where no column says it, n is one too, or is
    returned beside the rows if it is the same in all.

    Raises:
        ReportError: no column has this name.
    """
    columns = {short(column): column for column in printed[0]} | {c: c for c in printed[0]}
    names = [name.strip() for name in names]
    for name in names:
        if name not in columns:
            known = ", ".join(dict.fromkeys(map(short, printed[0])))
            raise ReportError(f"--columns: there is no column {name}; there are {known}")
    kept = dict.fromkeys(["id", *(columns[name] for name in names)])
    same = {}
    if kept.keys().isdisjoint(("n", "seeds")):
        if len({row["n"] for row in printed}) == 1:
            same["n"] = printed[0]["n"]
        else:
            kept["n"] = None
    return [{column: row[column] for column in kept} for row in printed], same


def short(column: str) -> str:
    """A column's name without its unit."""
    return column.partition(" (")[0]


def apart(printed: Rows) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The rows without the columns that say the same in all of them, and what these say."""
    first = printed[0]
    same = {
        column: value
        for column, value in first.items()
        if len(printed) > 1 and column not in KEPT and all(row[column] == value for row in printed)
    }
    rows = [{c: value for c, value in row.items() if c not in same} for row in printed]
    return rows, same


def rounded(values: Sequence[object]) -> list[str]:
    """Values of a setting for show: four digits, unless two of them would become one."""
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    exact = list(map(str, values))
    return texts if len({*texts}) == len({*exact}) else exact
