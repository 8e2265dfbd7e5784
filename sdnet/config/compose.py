"""The composed configuration: resolved once and checked.

The rest of the project works with the plain dictionary that `resolve` returns.
"""

import inspect
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdnet import processes
from sdnet.config.errors import ConfigError, explain
from sdnet.config.values import as_meant, check
from sdnet.models.checks import check_drop_rate
from sdnet.models.pretrained import digest_of
from sdnet.runs.files import Damaged
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import (
    AS_BEFORE,
    NOT_RESULT,
    canonical,
    determines_result,
    is_said_twice,
    run_name,
)

PACKAGE = Path(__file__).parents[1]
# In a wheel the settings are part of the package; in a checkout they are beside it.
SETTINGS = next(f for f in (PACKAGE / "conf", PACKAGE.parent / "conf") if f.is_dir())


def register_resolvers() -> None:
    """Makes `sdnet.run_name` and the others that conf/ uses known to OmegaConf."""
    resolvers = {"run_name": _run_name, "run_dir": _run_dir, "basename": _basename}
    resolvers |= {"survival": _survival, "digest": _digest}
    register = OmegaConf.register_new_resolver
    if "replace" in inspect.signature(OmegaConf.register_resolver).parameters:
        register = OmegaConf.register_resolver  # its name since OmegaConf 2.4; 2.3's is another
    for name, function in resolvers.items():
        register(f"sdnet.{name}", function, replace=True)


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
    return Path(str(path)).expanduser().resolve().name or "root"


def _survival(drop_path_rate: float | None) -> float:
    """Of the last block, at a drop-path rate; at 0.1 where there is none."""
    try:
        rate = 0.1 if drop_path_rate is None else check_drop_rate("drop_path_rate", drop_path_rate)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    return round(1.0 - rate, 12)


def _digest(file: str | None) -> str | None:
    """Of the content of a file of weights, so that other weights are another run."""
    try:
        return None if file is None else digest_of(str(file))
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error


def _run_name(_root_: DictConfig) -> str:
    try:
        return run_name(resolve(_root_))
    except ConfigError:
        return "."  # main() finds the same error and tells it


def _run_dir(time: str, _root_: DictConfig) -> str:
    """Where Hydra makes the folder; the current one where nothing is to be made."""
    if _root_.get("show") or not processes.is_main():
        return "."
    if _root_.get("resume") is not None:
        folder = RunFolder(str(_root_.resume))
        return str(folder.path) if folder.holds_run() else "."
    name = _run_name(_root_)
    return "." if name == "." else f"outputs/{name}/{time}"


def check_hydra(hydra: DictConfig) -> None:
    """Refuses what Hydra would do and the rest of the project does not expect."""
    if hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir must be false, got true: paths are relative to where the command was "
            "typed"
        )


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
    as_meant(config)
    check(config)
    if config["seeds"]:
        config["seed"] = config["seeds"][0]  # the first of its runs
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
    folder = RunFolder(config["resume"])
    if not folder.holds_run():
        raise ConfigError(f"resume={folder.path} is not a run folder: it has no config.yaml")
    stored = _stored(folder, config)
    added = sorted(set(config["trainer"]) - set(stored["trainer"]))
    newer = {n: AS_BEFORE.get(f"trainer.{n}", config["trainer"][n]) for n in added}
    if unknown := [n for n, value in newer.items() if determines_result(f"trainer.{n}", value)]:
        raise ConfigError(
            f"resume={folder.path} was begun by an earlier version of sdnet: its configuration has "
            f"no trainer.{unknown[0]}; start a new run"
        )
    stored["trainer"] |= newer
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        path = "" if key == "experiment" else key  # a preset may set anything
        new, old = _select(config, path), _select(stored, path)
        free = key in NOT_RESULT or key.startswith("wandb.") or is_said_twice(stored, key)
        if not free and canonical(new, path) != canonical(old, path):
            raise ConfigError(
                f"{key}={value} would change the result of the run in {folder.path}, which keeps "
                f"its stored configuration; leave it out, or start a new run"
            )
        if free:
            parent, _, last = key.rpartition(".")
            _select(stored, parent)[last] = new
    check(stored)
    return stored


def _stored(folder: RunFolder, config: dict[str, Any]) -> dict[str, Any]:
    """What config.yaml holds, if it has the settings and groups of settings that `config` has."""
    try:
        stored = folder.config()
        for key, value in config.items():
            if key not in stored and (isinstance(value, dict) or determines_result(key)):
                raise Damaged(f"config.yaml has no {key}")
            if isinstance(value, dict) and not isinstance(stored[key], dict):
                raise Damaged(f"config.yaml has no settings of {key}")
    except Damaged as error:
        raise ConfigError(f"resume={folder.path} is damaged: {error}") from error
    return completed(stored)


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the settings that an earlier version had not, by their defaults:
    those of `trainer`, and those of no group.

    Only where it changes no result: the run is the same one.
    """

    def later(file: Path, prefix: str) -> dict[str, Any]:
        defaults = yaml.safe_load(file.read_text(encoding="utf-8"))
        values = {k: v for k, v in defaults.items() if not isinstance(v, dict | list)}
        return {k: v for k, v in values.items() if not determines_result(prefix + k, v)}

    trainer = later(SETTINGS / "trainer" / "default.yaml", "trainer.") | stored["trainer"]
    return later(SETTINGS / "config.yaml", "") | stored | {"trainer": trainer}


def _select(config: dict[str, Any], path: str) -> Any:
    for key in filter(None, path.split(".")):
        config = config.get(key, {})
    return config


def remove_empty(folder: Path) -> None:
    """Removes the folder that Hydra made for a run that never began, and empty ones above it."""
    if folder != Path.cwd():
        with suppress(OSError):
            os.removedirs(os.path.relpath(folder))


register_resolvers()  # here, so that a launcher's worker processes know them too
