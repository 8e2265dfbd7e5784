"""Checks of single arguments; each raises a ValueError that names it and says what is allowed.

Numbers may come from any library: Python's, numpy's, a tensor of one. What is kept is Python's.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any


def number(value: Any) -> float | None:
    """`value` as a float where it is one real number; a truth value, a text or a list is none."""
    if is_truth(value) or getattr(value, "ndim", 0) != 0 or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a meta tensor
        return None


def whole(value: Any) -> int | None:
    """`value` as an int where it is one whole number; 2.0 and True are none."""
    if is_truth(value) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        return None


def is_truth(value: Any) -> bool:
    """Whether `value` is true or false, of whichever library."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def listed(given: Any) -> list[Any] | None:
    """The elements of a list, an array, a tensor or a generator; None for anything else."""
    if hasattr(given, "tolist"):
        given = given.tolist()  # of an array, by way of one copy
    if isinstance(given, str | dict | set) or not isinstance(given, Iterable):
        return None
    return list(given)


def shown(value: Any) -> str:
    """`value` for a message, which is one line and no long one, whatever was given."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_each(name: str, given: Any, count: int, of: str) -> list[Any]:
    """The `count` values that `name` must hold, one per `of`; else ValueError."""
    values = listed(given)
    if values is None or len(values) != count:
        got = shown(given) if values is None else len(values)
        raise ValueError(f"{name} must hold {count} values, one per {of}, got {got}")
    return values


def check_count(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int if it is a whole number of `least` or more; else ValueError for `name`."""
    count = whole(value)
    if count is None or count < least:
        raise ValueError(f"{name} must be whole and at least {least}, got {shown(value)}")
    return count


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is among `choices`, else a ValueError that names the setting and lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def check_survival(name: str, p: float) -> float:
    """`p` as a float if it is a survival probability, 0 < p <= 1; else ValueError naming `name`."""
    given = number(p)
    if given is None or not 0.0 < given <= 1.0:
        raise ValueError(
            f"{name} must be a number with 0 < {name} <= 1 (a survival probability), got {shown(p)}"
        )
    return given


def check_drop_rate(name: str, p: float) -> float:
    """`p` as a float if it is a drop probability, 0 <= p < 1; else ValueError naming `name`."""
    given = number(p)
    if given is None or not 0.0 <= given < 1.0:
        raise ValueError(f"{name} must be a drop probability with 0 <= {name} < 1, got {shown(p)}")
    return given
