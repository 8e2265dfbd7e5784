"""What is left of a run when it ends: its status, its numbers, its figures and its log."""

import errno
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdnet.data.readers import ReadersLost
from sdnet.runs.files import Damaged
from sdnet.runs.folder import RunFolder
from sdnet.training.trainer import Trainer

log = logging.getLogger("sdnet")
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


def is_the_machines(error: BaseException, run: RunFolder) -> bool:
    """Whether a run ended for what the same command mends: a folder that could not be written, or
    processes that read images and were killed."""
    if isinstance(error, ReadersLost):
        return True
    if isinstance(error, Damaged) and error.__cause__ is not None:
        error = error.__cause__  # one of its own files is gone
    if not isinstance(error, OSError):
        return False
    inside = isinstance(error.filename, str | Path) and run.path in Path(error.filename).parents
    return inside or error.errno in NO_DISK


def put_on_record(
    run: RunFolder, status: str, reason: str | None, trainer: Trainer | None
) -> dict[str, Any]:
    """Writes how a run ended, with its numbers as far as there are any; returns the summary."""
    result = None
    if trainer is not None:
        with told("the run's numbers could not be gathered"):
            result = trainer.result()
        if result is None and status == "completed":
            status, reason = "failed", "its numbers could not be gathered"
    with told(f"{run.path} is {status}, which could not be written"):
        return run.set_status(status, reason, result)
    return {"status": status, "reason": reason} | (result or {})


@contextmanager
def told(what: str):
    """What goes wrong here is told, and takes nothing away from a result that is written."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s: %s", what, type(error).__name__, error)
        log.debug(what, exc_info=True)


def figures_of(trainer: Trainer, run: RunFolder, name: str, summary: dict[str, Any]) -> list[Path]:
    """Draws survival.png, once there is a row curves.png, and with telemetry gradients.png."""
    from sdnet.analysis import plots

    paths = [run.figures / "survival.png"]
    schedule, layout = trainer.schedule, trainer.layout
    ends = [layout.survival(schedule, progress) for progress in (0.0, 1.0)]
    changing = ends if ends[0] != ends[1] else []
    mean = layout.mean_survival(schedule)
    plots.plot_survival(mean, layout.stage_gates, name, paths[0], changing)
    rows = run.rows()
    if rows:
        paths.append(run.figures / "curves.png")
        plots.plot_curves(rows, summary["best_epoch"], name, paths[1])
    if run.telemetry.is_file():
        from sdnet.analysis import figure_telemetry

        if figure_telemetry.plot_run(run.telemetry, name, run.figures / "gradients.png"):
            paths.append(run.figures / "gradients.png")
    return paths


class _LogFile(logging.FileHandler):
    """A log that a full disk or a folder that is gone costs lines, and the console none."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def log_file(run: RunFolder):
    """Sends what is logged in the project to train.log as well."""
    handler = _LogFile(run.path / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
