"""Where a run comes from: the command that repeats it, the code's commits, versions, the device."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from sdnet import processes, shell
from sdnet.config.errors import ConfigError
from sdnet.config.targets import ALLOW_VARIABLE
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import own_targets
from sdnet.training import device as devices

log = logging.getLogger("sdnet")
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")
TYPED = "SDNET_TYPED"  # what was typed, for processes that a launcher starts
PYTHONPATH = "PYTHONPATH"


def remember_command() -> None:
    """Notes how this program was started, before anything changes it."""
    program = [sys.argv[0]]
    if Path(program[0]).name == "__main__.py":
        program = ["-m", "sdnet", "train"]
    noted = {"program": program, PYTHONPATH: os.environ.get(PYTHONPATH)}
    os.environ[TYPED] = json.dumps(noted)


def _typed() -> dict[str, Any]:
    return json.loads(os.environ.get(TYPED, "null")) or {"program": ["train.py"], PYTHONPATH: None}


def command(*overrides: str) -> str:
    """What to type for a run of as many processes as this one has, but for the environment."""
    _, size, _ = processes.environment()
    start = ["python"]
    if size > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        nodes = [f"--nnodes={size // here}"] if size > here else []
        start = ["torchrun", *nodes, f"--nproc-per-node={here}"]
    return shell.line([*start, *_typed()["program"], *overrides])


def to_continue(run: RunFolder) -> str:
    """What to type to continue a run, with what this process was given by its environment."""
    given = {PYTHONPATH: _typed()[PYTHONPATH], ALLOW_VARIABLE: os.environ.get(ALLOW_VARIABLE)}
    start = shell.line([], given)
    return f"{start} {command(shell.setting('resume', run.path))}".strip()


def origin(config: dict[str, Any]) -> dict[str, Any]:
    """What it takes to repeat a run: command, commits, versions, seed.

    `overrides` are this run's own, whatever was swept, `options` those of Hydra's that say where
    settings are: `python <program> <options> <overrides>` repeats it, with `pythonpath`.
    """
    hydra = HydraConfig.get()
    overrides, options = list(hydra.overrides.task), _options(hydra)
    swept = hydra.mode == RunMode.MULTIRUN
    others = [override for override in overrides if not override.startswith("seeds=")]
    if others != overrides:  # it is one of several in this job
        overrides, swept = [*others, f"seed={config['seed']}"], True
    return {
        "command": command(*([*options, *overrides] if swept else sys.argv[1:])),
        "program": _typed()["program"],
        "options": options,
        "overrides": overrides,
        "pythonpath": _typed()[PYTHONPATH],
        "folder": os.getcwd(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **_commits(),
        **({"own_code": found} if (found := own_code(config)) else {}),
        "versions": {"python": platform.python_version(), "sdnet": _version("sdnet")}
        | {name: _version(name) for name in PACKAGES},
        "host": platform.node(),
        "seed": config["seed"],
    }


def _options(hydra: Any) -> list[str]:
    sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    options = [f"--config-dir={os.path.relpath(path)}" for path in sources]
    name = hydra.job.config_name
    return options if name == "config" else [*options, f"--config-name={name}"]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # sdnet used from a checkout
        return None


def note_device(run: RunFolder, device: torch.device, facts: dict[str, Any]) -> None:
    """Adds to the provenance what the timings of this process's work depend on, and of its data
    the fingerprint, `data`, and what the network was made for."""
    known = run.provenance() | facts
    where = devices.describe(device) | {"processes": processes.environment()[1]}
    (known["resumed"][-1] if "resumed" in known else known).update(where)
    run.write_provenance(known)


def _commits() -> dict[str, Any]:
    """The commit of sdnet's checkout, and that of another one in which the command was typed.

    None where there is none; dirty where a file differs that could change a result.
    """
    here = Path(__file__).resolve()
    ours = here.parent if _git(here.parent, "ls-files", "--error-unmatch", here.name) else None
    known = {
        "git_commit": _git(ours, "rev-parse", "HEAD") if ours else None,
        "git_dirty": _is_dirty(ours) if ours else False,
    }
    root = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if root and (ours is None or Path(root).resolve() not in ours.parents):
        project = {"git_commit": _git(Path(root), "rev-parse", "HEAD")}
        known["project"] = project | {"git_dirty": _is_dirty(Path(root))}
    return known


def own_code(config: dict[str, Any]) -> dict[str, str]:
    """The modules outside sdnet and torch that a configuration names, with a hash of their source.

    Of a package every file counts, since one may use another.
    """
    names = sorted({target.partition(".")[0] for target in own_targets(config)})
    return {name: _source_hash(sys.modules[name]) for name in names if name in sys.modules}


def _source_hash(module: Any) -> str:
    files = [Path(module.__file__)] if getattr(module, "__file__", None) else []
    files += [
        file for folder in getattr(module, "__path__", ()) for file in Path(folder).rglob("*.py")
    ]
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(set(files)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def warn_of_changed_code(run: RunFolder, config: dict[str, Any]) -> None:
    """Says where a run was computed by other code of the user's than is there now."""
    known = run.provenance()
    before = (known["resumed"][-1] if known.get("resumed") else known).get("own_code", {})
    for name, text in own_code(config).items():
        if before.get(name, text) != text:
            file = sys.modules[name].__file__
            log.warning(
                "%s was computed by %s (%s) as it was before a change", run.path, name, file
            )


def check_data(run: RunFolder, config: dict[str, Any], find: Callable[[dict], str | None]) -> None:
    """Raises a ValueError where a run was computed on other images than those that are there now.

    Args:
        find: the fingerprint of a configuration's data.
    """
    before = run.provenance().get("data") if run.holds_run() else None
    before = before if isinstance(before, str) else None
    found = before
    if before is not None:
        with suppress(ConfigError):  # they are gone: of a run that is done nothing is wrong
            found = find(config)
    if found != before:
        raise ValueError(
            f"{run.path} was computed on other images than dataset.root="
            f"{config['dataset'].get('root')} holds now: other data have another dataset.name=..."
        )


def _git(folder: Path, asked: str, *arguments: str) -> str | None:
    """What git says in a folder; None where that is no checkout.

    Git runs programs where it is told to: here it is not, and a checkout's own watcher is not run.
    """
    if asked not in ("ls-files", "rev-parse", "status"):
        raise ValueError(f"git {asked} is not asked for")
    words = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), asked]
    try:
        done = subprocess.run([*words, *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_dirty(folder: Path) -> bool:
    """Whether a checkout differs from its commit, by code and settings; run folders are none."""
    changes = (_git(folder, "status", "--porcelain") or "").splitlines()
    return any(not line.startswith("??") or line.endswith((".py", ".yaml")) for line in changes)
