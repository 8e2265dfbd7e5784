"""The command `python train.py`, or `python -m sdnet train`: its errors and its exit status."""

import os
import signal
import sys
from traceback import walk_tb
from typing import NoReturn

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sdnet import processes
from sdnet.config import compose
from sdnet.config.errors import ConfigError, RunError, explain
from sdnet.launch.job import job
from sdnet.launch.provenance import remember_command
from sdnet.runs.shown import visible

VERSION = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}  # 1.4 wants none

MISTAKES = (HydraException, OmegaConfBaseException)
VALUED = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")
VALUED += ("--cfg", "-c", "--info", "-i", "--experimental-rerun")


def run_command() -> NoReturn:
    """Composes what was typed and runs it; a user's mistake ends in one message and status 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead.
    """
    processes.interrupt_as_usual()
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if not full and not processes.is_main():  # the first process says what there is to say
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on to us
    remember_command()
    sys.argv[1:] = _options_first(sys.argv[1:])
    if any(word.startswith("sweep=") and word != "sweep=null" for word in sys.argv[1:]):
        sys.argv.append("hydra.mode=MULTIRUN")  # with or without -m
    compose.register_presets()
    status: int | str = 0
    mistake = None
    try:
        hydra.main(**VERSION, config_path=str(compose.SETTINGS), config_name="config")(job)()
    except SystemExit as ended:
        mistake = ended.__cause__ if full else None  # a job's, see there
        status = ended.code
    except KeyboardInterrupt as error:
        status = 128 + getattr(error, "number", signal.SIGINT)
    except Exception as error:
        if not full and (isinstance(error, MISTAKES) or not _has_begun(error)):
            status = f"error: {_explain(error, sys.argv[1:])}"
        else:
            if not processes.is_main():
                print(f"error on rank {processes.environment()[0]}: {error}", file=sys.__stderr__)
            raise
    if mistake is not None:
        raise mistake
    sys.exit(visible(status, keep="\n") if isinstance(status, str) else status)


def _options_first(words: list[str]) -> list[str]:
    """The words of a command with its options in front: argparse takes `a=1 -m`, not `a=1 -m b=2`.

    An option's value comes with it.
    """
    valued = [False, *(word in VALUED for word in words)]
    options = [value or word.startswith("-") for word, value in zip(words, valued, strict=False)]
    return [words[i] for i in sorted(range(len(words)), key=lambda i: not options[i])]


def _has_begun(error: Exception) -> bool:
    """Whether a job or a sweep was at work; before that Hydra composes what was typed."""
    modules = {frame.f_globals.get("__name__") for frame, _ in walk_tb(error.__traceback__)}
    return not modules.isdisjoint(("sdnet.launch.job", "sdnet.launch.sweep"))


def _explain(error: Exception, typed: list[str]) -> str:
    """What is wrong with what was typed, also where Hydra did not expect it."""
    if isinstance(error, ConfigError | RunError):
        return explain(error)
    for word in typed:
        key, _, text = word.lstrip("+").partition("=")
        members = (
            sorted(file.stem for file in (compose.SETTINGS / key).glob("*.yaml")) if key else []
        )
        if members and not _is_name(word):
            none = "; for none leave it out" if text == "null" else ""
            return f"{key} must be one of {', '.join(members)}, got {text}{none}"
    message = explain(error)
    if not isinstance(error, (*MISTAKES, yaml.YAMLError)):
        message = f"{type(error).__name__}: {message}"
    keys = [word.lstrip("+~").partition("=")[0] for word in typed]
    named = any(key and key in message for key in keys)
    return message if named else f"{message} (in: {' '.join(typed)})"


def _is_name(override: str) -> bool:
    """Whether an override chooses a member, or several, of a group: no for null or a number."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = "" if parsed.is_sweep_override() else parsed.value()
    except HydraException:
        return True  # of which Hydra itself says what is wrong
    return all(isinstance(name, str) for name in (value if isinstance(value, list) else [value]))
