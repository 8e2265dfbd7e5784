"""A user's mistakes and runs that end badly: each told in one message, without a traceback."""

import difflib
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException


class ConfigError(CompactHydraException):
    """A user's mistake: told in one message, without a traceback."""


class RunError(CompactHydraException):
    """A run that ended badly for a reason that its message says."""


class Busy(RunError):
    """A run that another process works on."""


@contextmanager
def errors_of(config: dict[str, Any], group: str):
    """Turns a ValueError inside the block into a ConfigError that names the setting of `group`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(in_group(group, config[group], error)) from error


def in_group(group: str, node: dict, error: Exception) -> str:
    """`p_L must be ...` becomes `schedule.p_L must be ...`."""
    text = str(error)
    first = text.replace("=", " ").split(" ")[0]
    return f"{group}.{text}" if first in node else f"{group}: {text}"


def not_a_setting(key: str, known: Sequence[str]) -> str:
    """What to say of a name that nothing reads."""
    prefix, _, wrong = key.rpartition(".")
    close = difflib.get_close_matches(wrong, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    where = f"in {prefix}" if prefix else "at the top"
    return f"{key} is not a setting{hint} Known {where}: {', '.join(known)}"


def explain(error: Exception) -> str:
    """What Hydra's error means to the one who typed the command."""
    text = str(error)
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} must be given, as {missing[1]}=..."
    unknown = re.search(r"Interpolation key '(\S+)' not found", text)
    if unknown:
        return f"{unknown[1]} must be given, in its group's file or as {unknown[1]}=..."
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if isinstance(cause, OmegaConfBaseException) and parent is not None and cause.full_key:
        allowed = sorted(str(k) for k in parent if k != "hydra")
        wrong = str(cause.full_key).rpartition(".")[2]
        if wrong not in allowed:
            prefix = str(cause.full_key).rpartition(".")[0]
            if not prefix:
                allowed.append("experiment")
            return not_a_setting(str(cause.full_key), allowed)
    plugin = re.search(r"Could not (?:find|load) 'hydra/(\w+)/(\w+)_plugin'", text)
    if plugin:
        return (
            f"hydra/{plugin[1]}={plugin[2]} needs a plugin that is not installed: "
            "pip install -r requirements-extras.txt"
        )
    return text.partition("\nConfig search path")[0]
