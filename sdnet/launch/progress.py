"""How far a sweep is: told by the run that begins, wherever a launcher starts it."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sdnet.runs.folder import RunFolder

SWEEP = "SDNET_SWEEP"  # the folder names of a sweep's runs, in the environment of its processes


def remember_runs(names: Sequence[str]) -> None:
    """Tells the runs that this process starts, here or in others, to which sweep they belong."""
    os.environ[SWEEP] = json.dumps(list(names))


def number(run: RunFolder) -> str:
    """`run 5` for a run of a sweep, else nothing."""
    names = _names()
    return f"run {names.index(run.path.name) + 1}" if run.path.name in names else ""


def _names() -> list[str]:
    return json.loads(os.environ.get(SWEEP, "[]"))


def place(run: RunFolder) -> str:
    """`run 5 of 14, about 40 min left: ` for a run of a sweep, nothing for another.

    The time is that of the runs that are done, for those that are not, of which some may be
    computed at the same time.
    """
    text = number(run)
    if not text:
        return ""
    folders = [RunFolder(run.path.parent / name) for name in _names()]
    text += f" of {len(folders)}"
    states, seconds = [], []
    for folder in folders:
        with suppress(OSError, ValueError, KeyError):  # another run's damage is not this one's
            states.append(folder.state())
            if states[-1] == "completed":
                seconds.append(seconds_taken(folder.summary()))
    if seconds:
        left = sum(state in ("new", "interrupted", "running") for state in states)
        at_once = max(states.count("running"), 1)
        rounds = -(-left // at_once)
        text += f", about {duration(rounds * sum(seconds) / len(seconds))} left"
    return f"{text}: "


def seconds_taken(summary: dict[str, Any]) -> float:
    """What a completed run took to compute."""
    return summary["train_seconds"] + summary["eval_seconds"]


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 10 min`, `2 d 5 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
