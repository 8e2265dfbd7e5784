"""The composed configuration: resolved once, checked, and turned into objects.

The rest of the project works with the plain dictionary that `resolve` returns.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdnet import run
from sdnet.training import distributed

ALLOW_VARIABLE = "SDNET_ALLOW_TARGETS"
# What a target may be, by the group it stands in: public objects of these modules of ours, and
# subclasses of this class of torch's, defined in torch or torchvision.
TARGETS = {
    "model": ("sdnet.models", "torch.nn.Module"),
    "dataset": ("sdnet.data.sources", None),
    "schedule": ("sdnet.models.schedules", None),
    "optimizer": (None, "torch.optim.Optimizer"),
    "lr_schedule": ("sdnet.training.optim", None),
}
# Keys of a group that are ours: they never reach the group's target.
LABELS = {
    "model": ("name",),
    "dataset": ("name", "validation", "normalization", "shift", "flip"),
    "schedule": ("name",),
    "optimizer": ("skipped_update",),
    "lr_schedule": (),
}


class ConfigError(CompactHydraException):
    """A user's mistake: told in one message, without a traceback."""


class RunError(CompactHydraException):
    """A run that ended badly for a reason that its message says."""


class Busy(RunError):
    """A run that another process works on."""


def register_resolvers() -> None:
    """Makes `sdnet.run_name`, `sdnet.run_dir` and `sdnet.basename` known to OmegaConf."""
    resolvers = {"run_name": _run_name, "run_dir": _run_dir, "basename": _basename}
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(f"sdnet.{name}", function, replace=True)


# Plugins for which conf/hydra has settings of ours, under the plugins' own names.
PLUGINS = {
    "launcher": ("joblib", "submitit_local", "submitit_slurm"),
    "sweeper": ("optuna",),
}


def register_presets() -> None:
    """Lets `conf/hydra/launcher/joblib.yaml` extend the plugin's settings instead of clashing.

    Hydra matches a file with a registered configuration of the same name: a warning at best, an
    error for optuna's. So what a plugin registered gets another name, `joblib_plugin`.
    """
    Plugins.instance()  # finds the plugins, which register themselves
    registered = ConfigStore.instance().repo.get("hydra", {})
    for group, names in PLUGINS.items():
        nodes = registered.get(group, {})
        for name in names:
            if f"{name}.yaml" in nodes:
                nodes[f"{name}_plugin.yaml"] = nodes.pop(f"{name}.yaml")


def _basename(path: str) -> str:
    return Path(path).expanduser().resolve().name or "root"


def _run_name(_root_: DictConfig) -> str:
    try:
        return run.run_name(resolve(_root_))
    except ConfigError:
        return "."  # main() finds the same error and tells it


def _run_dir(time: str, _root_: DictConfig) -> str:
    """Where Hydra makes the folder; the current one where nothing is to be made."""
    if _root_.show or not distributed.is_main():
        return "."
    if _root_.resume is not None:
        folder = Path(str(_root_.resume))
        return str(folder) if (folder / "config.yaml").is_file() else "."
    name = _run_name(_root_)
    return "." if name == "." else f"outputs/{name}/{time}"


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a plain dictionary, without Hydra's part, every value checked.

    Raises:
        ConfigError: a value that is missing or out of range, or a target that is not allowed.
    """
    plain = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    try:
        config = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    check(config)
    return config


def resumed(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration of a run to continue: the stored one, with what was overridden that
    does not determine the result (device, threads, W&B, ...).

    Args:
        config: as composed from the command line, with `resume` set.
        overrides: as typed, e.g. `["resume=outputs/...", "trainer.threads=1"]`.

    Raises:
        ConfigError: no run in that folder, or an override that would change the result.
    """
    folder = run.RunFolder(config["resume"])
    if not folder.holds_run():
        raise ConfigError(f"resume={folder.path} is not a run folder: it has no config.yaml")
    stored = folder.config()
    if unknown := sorted(set(config["trainer"]) - set(stored["trainer"])):
        raise ConfigError(
            f"resume={folder.path} was begun by an earlier version of sdnet: its configuration has "
            f"no trainer.{unknown[0]}; start a new run"
        )
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        path = "" if key == "experiment" else key  # a preset may set anything
        new, old = _select(config, path), _select(stored, path)
        if run.canonical(new, path) != run.canonical(old, path):
            raise ConfigError(
                f"{key}={value} would change the result of the run in {folder.path}, which keeps "
                f"its stored configuration; leave it out, or start a new run"
            )
        if key in run.NOT_RESULT or key.startswith("wandb."):
            parent, _, last = key.rpartition(".")
            _select(stored, parent)[last] = new
    check(stored)
    return stored


def _select(config: dict[str, Any], path: str) -> Any:
    for key in filter(None, path.split(".")):
        config = config.get(key, {})
    return config


def remove_empty(folder: Path) -> None:
    """Removes the folder that Hydra made for a run that never began, and empty ones above it."""
    if folder != Path.cwd():
        with suppress(OSError):
            os.removedirs(os.path.relpath(folder))


# -- values ---------------------------------------------------------------------------------------


def _whole(minimum: int) -> tuple[Callable, str]:
    return lambda v: type(v) is int and v >= minimum, f"a whole number, {minimum} or more"


def _number(minimum: float, above: bool = False) -> tuple[Callable, str]:
    def valid(v: Any) -> bool:
        inside = type(v) in (int, float) and v < float("inf")
        return inside and (v > minimum if above else v >= minimum)

    return valid, f"a number {'above' if above else 'of at least'} {minimum:g}"


def _one_of(*choices: str) -> tuple[Callable, str]:
    return lambda v: v in choices, f"one of {', '.join(choices)}"


def _optional(check: tuple[Callable, str]) -> tuple[Callable, str]:
    return lambda v: v is None or check[0](v), f"{check[1]}, or null"


_BOOLEAN = (lambda v: type(v) is bool, "true or false")
_TEXT = (lambda v: isinstance(v, str) and v != "", "a text")
_DEVICE = (
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", v),
    "auto, cpu, cuda or cuda:<n>",
)
_NAME = (
    lambda v: isinstance(v, str) and v not in ("", ".", "..") and not set(v) & set('/\\:"'),
    "a name for a folder",
)

_PAIR = (
    lambda v: (
        isinstance(v, list) and len(v) == 2 and all(type(b) is float and 0 <= b < 1 for b in v)
    ),
    "two numbers b with 0 <= b < 1",
)

CHECKS = {
    "name": _NAME,
    "seed": _whole(0),
    "show": _BOOLEAN,
    "resume": _optional(_TEXT),
    "retry_failed": _BOOLEAN,
    "model.name": _NAME,
    "dataset.name": _NAME,
    "dataset.root": _TEXT,
    "dataset.download": _BOOLEAN,
    "dataset.shift": _whole(0),
    "dataset.flip": _BOOLEAN,
    "schedule.name": _NAME,
    "optimizer.lr": _number(0, above=True),
    "optimizer.momentum": _number(0),
    "optimizer.betas": _PAIR,
    "optimizer.nesterov": _BOOLEAN,
    "optimizer.weight_decay": _number(0),
    "optimizer.skipped_update": _one_of("decay", "freeze"),
    "trainer.epochs": _whole(1),
    "trainer.batch_size": _whole(2),  # BatchNorm needs two values
    "trainer.accumulate": _whole(1),
    "trainer.checkpoint_blocks": _optional(_whole(1)),
    "trainer.compile": _optional((lambda v: v == "branches", "branches")),
    "trainer.fused": _BOOLEAN,
    "trainer.sync_batchnorm": _BOOLEAN,
    "trainer.eval_every": _whole(1),
    "trainer.eval_unit": _one_of("epoch", "step"),
    "trainer.log_every": _whole(1),
    "trainer.device": _DEVICE,
    "trainer.precision": _one_of("fp32", "tf32", "bf16"),
    "trainer.threads": _optional(_whole(1)),
    "trainer.workers": _optional(_whole(0)),
    "trainer.channels_last": _BOOLEAN,
    "trainer.deterministic": _BOOLEAN,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": (
        lambda v: isinstance(v, str) and 0 < len(v) <= 128 and not set(v) & set("/\\#?%:"),
        "a text of at most 128 characters without / \\ # ? % :",
    ),
    "wandb.entity": _optional(_TEXT),
    "wandb.group": _optional(_TEXT),
    "wandb.name": _optional(_TEXT),
    "wandb.tags": (
        lambda v: isinstance(v, list) and all(isinstance(t, str) and 0 < len(t) <= 64 for t in v),
        "a list of texts of 1 to 64 characters",
    ),
}


def check(config: dict[str, Any]) -> None:
    """Checks single values and every target; what a class knows better, it checks itself.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    for key, (valid, allowed) in CHECKS.items():
        group, _, name = key.rpartition(".")
        node = config.get(group, {}) if group else config
        if name in node and not valid(node[name]):
            raise ConfigError(f"{key} must be {allowed}, got {node[name]!r}")
    for path, value in _leaves(config, ""):
        if isinstance(value, str) and "${" in value:
            # Hydra would resolve it once more, after the targets were checked.
            raise ConfigError(f"{path} must not hold an interpolation as text, got {value!r}")
        if path.endswith("_target_"):
            check_target(path, value)


# -- targets --------------------------------------------------------------------------------------


def _leaves(node: Any, path: str):
    """The (dotted name, value) pairs of a configuration at any depth."""
    if not isinstance(node, dict | list):
        yield path, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def check_target(path: str, target: Any) -> None:
    """Refuses a `_target_` unless what it resolves to is one of the project's building blocks.

    Allowed is what TARGETS says for the group that `path` begins with, and the names listed
    (separated by commas) in the environment variable SDNET_ALLOW_TARGETS.

    Raises:
        ConfigError: naming the setting and the target.
    """
    listed = [t.strip() for t in os.environ.get(ALLOW_VARIABLE, "").split(",")]
    if isinstance(target, str) and target and target in listed:
        return
    # Nothing is imported for a name that starts elsewhere: importing runs code.
    known = isinstance(target, str) and target.split(".")[0] in ("sdnet", "torch", "torchvision")
    found = _locate(target) if known else None
    if _is_building_block(found, *TARGETS.get(path.split(".")[0], (None, None))):
        return
    problem = "does not exist" if known and found is None else "is not allowed"
    raise ConfigError(
        f"{path}={target} {problem} here: a target must be a block, network, schedule, data "
        f"set or optimizer of sdnet or torch, in its own group. To use one of your own, list it in "
        f"the environment variable {ALLOW_VARIABLE}."
    )


def _locate(target: str) -> Any:
    """The object that a dotted name means, or None."""
    parts = target.split(".")
    for n in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            found = getattr(found, part, None)
        return found
    return None


def _is_building_block(found: Any, ours: str | None, base: str | None) -> bool:
    """Judged by the object itself: by what it is and where its definition stands, not its name."""
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    home = sys.modules.get(found.__module__)
    if home is None or getattr(home, found.__qualname__, None) is not found:
        return False  # __module__ can be forged
    if found.__module__.split(".")[0] == "sdnet":
        inside = ours is not None and f"{found.__module__}.".startswith(f"{ours}.")
        return inside and not found.__name__.startswith("_")
    foreign = found.__module__.split(".")[0] in ("torch", "torchvision")
    return (
        foreign and base is not None and inspect.isclass(found) and issubclass(found, _locate(base))
    )


def instantiate(config: dict[str, Any], group: str, *args: Any, **kwargs: Any) -> Any:
    """The object that a group of the checked configuration describes.

    Raises:
        ConfigError: what the target's own checks found, with the group named.
    """
    from hydra.utils import instantiate as hydra_instantiate

    node = {k: v for k, v in config[group].items() if k not in LABELS[group]}
    try:
        return hydra_instantiate(node, *args, **kwargs, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError | OSError):
            raise ConfigError(_with_group(group, config[group], error.__cause__)) from error
        raise


@contextmanager
def errors_of(config: dict[str, Any], group: str):
    """Turns a ValueError inside the block into a ConfigError that names the setting of `group`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(_with_group(group, config[group], error)) from error


def _with_group(group: str, node: dict, error: Exception) -> str:
    """`p_L must be ...` becomes `schedule.p_L must be ...`."""
    text = str(error)
    first = text.replace("=", " ").split(" ")[0]
    return f"{group}.{text}" if first in node else f"{group}: {text}"


# -- errors ---------------------------------------------------------------------------------------


def explain(error: Exception) -> str:
    """What Hydra's error means to the one who typed the command."""
    text = str(error)
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} must be given, as {missing[1]}=..."
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if isinstance(cause, OmegaConfBaseException) and parent is not None and cause.full_key:
        allowed = sorted(str(k) for k in parent if k != "hydra")
        wrong = str(cause.full_key).rpartition(".")[2]
        if wrong not in allowed:
            prefix = str(cause.full_key).rpartition(".")[0]
            if not prefix:
                allowed.append("experiment")
            close = difflib.get_close_matches(wrong, allowed, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            where = f"in {prefix}" if prefix else "at the top"
            return f"{cause.full_key} is not a setting{hint} Known {where}: {', '.join(allowed)}"
    plugin = re.search(r"Could not (?:find|load) 'hydra/(\w+)/(\w+)_plugin'", text)
    if plugin:
        return (
            f"hydra/{plugin[1]}={plugin[2]} needs a plugin that is not installed: "
            "pip install -r requirements-extras.txt"
        )
    return text.partition("\nConfig search path")[0]


register_resolvers()  # here, so that a launcher's worker processes know them too
