"""One process's work on a run: where it comes from, how it ends, and what is left of it."""

import importlib.metadata
import logging
import platform
import shlex
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from sdnet import device as devices
from sdnet import tracking
from sdnet.run import RunFolder, run_name
from sdnet.training.console import ConsoleListener, result_lines
from sdnet.training.trainer import Diverged, Interrupted, Trainer

log = logging.getLogger("sdnet")
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


def provenance(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What it takes to repeat a run: command, commit, versions, machine, seed.

    `overrides` are this run's own, whatever was swept: `python train.py <overrides>` repeats it.
    """
    return {
        "command": shlex.join(["python", *sys.argv]),
        "overrides": list(HydraConfig.get().overrides.task),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        **devices.describe(device),
        "seed": config["seed"],
    }


def is_completed(config: dict[str, Any]) -> bool:
    """Whether the run to resume has nothing left to do; then its result is shown once more."""
    run = RunFolder(config["resume"])
    summary = run.summary()
    if summary["status"] != "completed":
        return False
    log.info("this run is completed:")
    for line in result_lines(config, summary, str(run.path)):
        log.info(line)
    return True


def begin(run: RunFolder, config: dict[str, Any], device: torch.device) -> None:
    """Makes the folder of a new run; a resumed one's provenance lists each time that happened.

    Raises:
        FileExistsError: the folder of a new run holds a run already.
    """
    origin = provenance(config, device)
    if config["resume"] is None:
        run.create(config, origin | {"wandb_id": uuid.uuid4().hex[:8]})
    else:
        known = run.provenance()
        run.write_provenance(known | {"resumed": [*known.get("resumed", []), origin]})


def _git(*arguments: str) -> str | None:
    """What git says of this project's checkout; None where there is none."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def train(
    trainer: Trainer, run: RunFolder, config: dict[str, Any], wandb_mode: str, console
) -> None:
    """Trains to the end; whatever happens, the run folder says so.

    Raises:
        Interrupted: asked to stop by Ctrl-C or SIGTERM; the state is saved.
        Diverged: the loss is not finite.
    """
    name, run_id = run_name(config), run.provenance()["wandb_id"]
    with _log_file(run), ConsoleListener(console) as shown:
        trainer.listeners = (shown,)
        tracker = None
        run.set_status("running")
        status, reason = "completed", None
        try:
            if wandb_mode != "disabled":
                tracker = tracking.WandbListener(config, wandb_mode, run.path, name, run_id)
                trainer.listeners += (tracker,)
            with _stop_on_signal(trainer):
                trainer.fit()
        except (Interrupted, KeyboardInterrupt) as error:
            status, reason = "interrupted", str(error) or "stopped before its state was saved"
            raise
        except Diverged as error:
            status, reason = "diverged", str(error)
            raise
        except BaseException as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
            log.exception("the run failed")
            raise
        finally:
            head = {"status": status} | ({} if reason is None else {"reason": reason})
            summary = head | trainer.result() | {"identity": run.summary()["identity"]}
            run.write_summary(summary)  # first: nothing that follows may cost the result
            figures = _figures(trainer, run, name, summary)
            if tracker is not None:
                tracker.finish(summary, figures)
        for line in result_lines(config, summary, str(run.path)):
            log.info(line)


def _figures(trainer: Trainer, run: RunFolder, name: str, summary: dict[str, Any]) -> list[Path]:
    """Draws survival.png and, once there is a row, curves.png."""
    from sdnet.analysis import plots

    paths = [run.figures / "survival.png"]
    stage_blocks = trainer.model.stage_blocks
    plots.plot_survival(trainer.model.schedule(stage_blocks), stage_blocks, name, paths[0])
    rows = run.rows()
    if rows:
        paths.append(run.figures / "curves.png")
        plots.plot_curves(rows, summary["best_epoch"], name, paths[1])
    return paths


@contextmanager
def _log_file(run: RunFolder):
    """Sends what is logged in the project to train.log as well."""
    handler = logging.FileHandler(run.path / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _stop_on_signal(trainer: Trainer):
    """The first Ctrl-C or SIGTERM ends the run after the step at hand; a second one at once."""

    def stop(number, frame):
        trainer.stop_requested = True
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
