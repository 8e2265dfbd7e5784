"""The differences of a report in words: a block of short sentences for each row compared."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdnet.analysis.differences import SAME, Difference
from sdnet.analysis.groups import Group, short_names
from sdnet.analysis.inference import LEVEL, MOST, POWER, Ends

SWEEPS = f"{100 * POWER:.0f} of 100 sweeps"


class Block(NamedTuple):
    """Of one row: what it is and what is to be said of it, the verdict first."""

    title: str
    lines: list[str]


def blocks(
    groups: Sequence[Group], found: Mapping[str, Difference], rows: Sequence[dict[str, Any]]
) -> list[Block]:
    """A block for each row that has runs of the same seed as its reference."""
    return [
        Block(_title(group, found[group.id]), _lines(found[group.id], row))
        for group, row in zip(groups, rows, strict=True)
        if found[group.id].n
    ]


def short(blocks: Sequence[Block]) -> list[str]:
    """A line for each, to print."""
    if not blocks:
        return []
    head = "\ndifferences in points, 95 % intervals (in full in report.md):"
    return [head, *(f"  {block.title}: {block.lines[0]}" for block in blocks)]


def _title(group: Group, found: Difference) -> str:
    names = short_names(list(group.shown))
    own = ", ".join(f"{names[k]} {v}" for k, v in group.shown.items() if v is not None)
    return f"{group.id} against {found.reference.id if found.reference else ''} ({own})"


def _lines(found: Difference, row: dict[str, Any]) -> list[str]:
    lines = [_verdict(found)]
    if found.n == 1:
        lines.append("One pair of runs: of other seeds nothing can be said.")
    if found.seeds:
        lines.append(f"For other seeds: {_ends(found.seeds)} (paired t, {found.n} pairs).")
    if found.both:
        lines.append(f"For other seeds and other test images: {_ends(found.both)}.")
    if found.images:
        lines.append(f"For other test images and these runs: {_ends(found.images)} (bootstrap).")
    lines += _tests(found)
    lines.append(_by_image(found))
    lines += _power(found)
    return lines + _time(row)


def _verdict(found: Difference) -> str:
    mean = found.mean or 0.0
    size = f"Test error {abs(mean):.2f} points {'lower' if mean < 0 else 'higher'}"
    size = "Test error equal" if abs(mean) < SAME else size
    if found.n == 1:
        ends = f" {_ends(found.images)} for other test images" if found.images else ""
        return f"{size}{ends}, with one seed. No difference of the methods is shown."
    widest = found.widest
    if found.p is None or widest is None:
        return f"{size}. All pairs differ by the same, so of other seeds nothing is known."
    size += f" {_ends(widest)}"
    if widest[0] <= 0 <= widest[1] or found.p > LEVEL:
        return f"{size}. No difference is shown."
    if found.p_holm is not None and found.p_holm > LEVEL:
        return f"{size}. Of {found.rows} rows one may differ so by chance: no difference is shown."
    return f"{size}. A difference is shown."


def _tests(found: Difference) -> list[str]:
    if found.p is None:
        return []
    name = "the paired t-test" if found.n > 1 else "McNemar's test, of these two networks alone"
    text = f"{_p(found.p)} by {name}"
    if found.p_holm is not None:
        text += f"; {_p(found.p_holm)} adjusted for {found.rows} rows (Holm)"
    if found.p_dunnett is not None:
        text += f"; {_p(found.p_dunnett)} unpaired and adjusted (Dunnett)"
    least = 2.0 ** (1 - found.n)  # where all pairs differ the same way
    if found.n == 1 or least <= LEVEL:
        return [f"{text}."]
    never = f"No sign or rank test of {found.n} pairs can be significant"
    return [f"{text}.", f"{never}: the smallest p that it can have is {least:g}."]


def _by_image(found: Difference) -> str:
    if found.missing:
        return f"Of test images nothing can be said: {found.missing}."
    pairs = (f"{d.ours} and {d.theirs} with seed {d.seed}, {_p(d.p)}" for d in found.discordant)
    head = "Test images that this row alone has wrong, and the other alone (McNemar)"
    return f"{head}: {'; '.join(pairs)}."


def _power(found: Difference) -> list[str]:
    if found.shown_by_n is None:
        return []
    text = f"{found.n} pairs show a difference of {found.shown_by_n:.2f} in {SWEEPS}"
    if not found.mean:
        return [f"{text}."]
    needed = f"more than {MOST:,}" if found.pairs_needed is None else str(found.pairs_needed)
    return [f"{text}; to show one of {abs(found.mean):.2f} takes {needed} pairs."]


def _time(row: dict[str, Any]) -> list[str]:
    if row["times_not_comparable"]:
        return [f"Time saved: not comparable, {row['times_not_comparable']}."]
    if row["time_saving"] is None:
        return []
    text = f"Time saved in an epoch of training: {100 * row['time_saving']:z.1f} %"
    if row["time_saving_low"] is not None:
        low, high = (100 * row[f"time_saving_{end}"] for end in ("low", "high"))
        text += f" [{low:z.1f}, {high:z.1f}]"
    gates = row["gates_saving"]
    return [f"{text}." if gates is None else f"{text}; gates skip {100 * gates:z.1f} %."]


def _ends(ends: Ends) -> str:
    return f"[{ends[0]:+z.2f}, {ends[1]:+z.2f}]"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
