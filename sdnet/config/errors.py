"""A user's mistakes and runs that end badly: each told in one message, without a traceback."""

import difflib
import os
import re
import traceback
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from hydra.errors import CompactHydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException


class ConfigError(CompactHydraException):
    """A user's mistake: told in one message, without a traceback."""


class RunError(CompactHydraException):
    """A run that ended badly for a reason that its message says."""


class Busy(RunError):
    """A run that another process works on."""


class NotBegun(RunError):
    """A run that this process could not even begin: it is as it was."""


@contextmanager
def errors_of(config: dict[str, Any], group: str):
    """Turns a ValueError inside the block into a ConfigError that names the setting of `group`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(in_group(group, config[group], error)) from error


def in_group(group: str, node: dict, error: Exception) -> str:
    """`p_L must be ...` becomes `schedule.p_L must be ...`."""
    text = one_line(error)
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", text):
        if unknown[1] in node:
            hint = nearest(unknown[1], [name for name in node if name != unknown[1]]).rstrip(".")
            return f"{group}.{unknown[1]} is not a setting of {node.get('_target_')}{hint}"
        return f"{group}._target_={node.get('_target_')} takes no {unknown[1]}, which it is given"
    twice = re.search(r"multiple values for argument '(\w+)'", text)
    if twice and twice[1] in node:
        return f"{group}.{twice[1]} must be left out: {node.get('_target_')} sets it itself"
    if missing := re.search(r"missing \d+ required .*argument.*?'(\w+)'", text):
        return f"{group}.{missing[1]} must be given, as {group}.{missing[1]}=..."
    first = text.replace("=", " ").split(" ")[0]
    if first in node and isinstance(error, ValueError | TypeError):
        return f"{group}.{text}"
    if not isinstance(error, ValueError | TypeError | OSError):
        text = f"{type(error).__name__}: {text}"
    place = "" if isinstance(error, ValueError | OSError) else place_of(error)
    return f"{group}: {text} ({place})" if place else f"{group}: {text}"


def one_line(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return str(error.msg)  # without the file, see `place_of`
    return " ".join(str(error).split())


def place_of(error: Exception) -> str:
    """File and line at which it was raised; nothing where Hydra's own call was wrong."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    places = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    written = [place for place in places if not place[0].startswith("<frozen")]
    if not written or f"{os.sep}hydra{os.sep}" in written[-1][0]:
        return ""
    return "{}, line {}".format(*written[-1])


def not_a_setting(key: str, known: Sequence[str]) -> str:
    """What to say of a name that nothing reads."""
    prefix, _, wrong = key.rpartition(".")
    where = f"in {prefix}" if prefix else "at the top"
    return f"{key} is not a setting{nearest(wrong, known)} Known {where}: {', '.join(known)}"


def nearest(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def explain(error: Exception) -> str:
    """What Hydra's error means to the one who typed the command, in one line."""
    if isinstance(error, ConfigError | RunError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, cannot be read: {error.problem}"
    text = str(error)
    ours = re.search(r"ConfigError raised while resolving interpolation: (.*)", text)
    if ours:  # by one of the resolvers in `sdnet.config.compose`
        return ours[1]
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} must be given, as {missing[1]}=..."
    unknown = re.search(r"Interpolation key '(\S+)' not found", text)
    if unknown:
        key = getattr(error, "full_key", None)
        where = f" (${{{unknown[1]}}} in {key})" if key and key != unknown[1] else ""
        return f"{unknown[1]} must be given, in its group's file or as {unknown[1]}=...{where}"
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
    member = re.search(r"Could not find '(\S+)/(\S+)'\s+Available options in \S+\s+([^:]*)", text)
    if member:
        group, wrong, names = member[1], member[2], member[3].split("Config search path")[0]
        known = [name for name in names.split() if not name.endswith("_plugin")]
        hint = nearest(wrong, known).rstrip(".")
        return f"{group} must be one of {', '.join(known)}, got {wrong}{hint}"
    several = re.search(r"Ambiguous value for argument '(.*?)'", text, re.DOTALL)
    if several:
        key, _, values = several[1].partition("=")
        return (
            f"{several[1]} are several values: put -m first to run each of them, or write "
            f"'{key}=[{values}]' for a list and '{key}=\"{values}\"' for a text"
        )
    text = text.partition("\nConfig search path")[0].partition("\nSee https://hydra.cc")[0]
    if isinstance(error, OverrideParseException):
        *before, why = text.splitlines()
        if why.strip() == "^":  # it points into the line above
            why = f"token recognition error at: '{before[-1][why.index('^') :]}'"
        text = f"{error.override} cannot be read: {why}"
    if isinstance(error, OmegaConfBaseException):  # its further lines are about OmegaConf's types
        text = text.partition("\n")[0]
        text = f"{error.full_key}: {text}" if error.full_key else text
    return " ".join(text.split())
