"""Checks of single arguments; each raises a ValueError that names it and says what is allowed."""

from collections.abc import Sequence
from numbers import Real


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is among `choices`, else a ValueError that names the setting and lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_survival(name: str, p: float) -> float:
    """`p` as a float if it is a survival probability, 0 < p <= 1; else ValueError naming `name`."""
    if isinstance(p, bool) or not isinstance(p, Real) or not 0.0 < p <= 1.0:
        raise ValueError(
            f"{name} must be a number with 0 < {name} <= 1 (a survival probability), got {p!r}"
        )
    return float(p)


def check_drop_rate(name: str, p: float) -> None:
    """ValueError naming `name` unless `p` is a drop probability, 0 <= p < 1."""
    if isinstance(p, bool) or not isinstance(p, Real) or not 0.0 <= p < 1.0:
        raise ValueError(f"{name} must be a drop probability with 0 <= {name} < 1, got {p!r}")
