"""One process's work on a run: where it comes from, how it ends, and what is left of it."""

import logging
import uuid
from collections.abc import Callable
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console

from sdnet.config.errors import Busy, ConfigError, RunError
from sdnet.launch import build
from sdnet.launch.ending import figures_of, is_the_machines, log_file, put_on_record, told
from sdnet.launch.progress import place
from sdnet.launch.provenance import (
    check_data,
    note_device,
    origin,
    to_continue,
    warn_of_changed_code,
)
from sdnet.launch.signals import stop_on_signal
from sdnet.listeners.console import ConsoleListener, opening_lines, result_lines, title
from sdnet.listeners.telemetry import Telemetry
from sdnet.listeners.wandb_run import WandbListener
from sdnet.lock import Lock, Locked
from sdnet.runs.files import Damaged
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import run_name
from sdnet.runs.shown import visible
from sdnet.training.counters import Diverged, Interrupted
from sdnet.training.distributed import ALONE, Lost, World
from sdnet.training.listener import Listener
from sdnet.training.trainer import Trainer

log = logging.getLogger("sdnet")


class Guard(Listener):
    """Ends a run whose lock was taken over while this process was suspended."""

    def __init__(self, lock: Lock, run: RunFolder):
        self.lock, self.run = lock, run

    def on_step(self, trainer: Trainer) -> None:
        if self.lock.lost:  # the heartbeat found it
            self.check()

    def check(self) -> None:
        """Raises Busy where another process has the run by now."""
        if not self.lock.held():
            raise Busy(f"{self.run.path} was taken over by another process")


def begin(run: RunFolder, config: dict[str, Any]) -> None:
    """Makes the folder of a new run; a resumed one's provenance lists each time that happened."""
    here = origin(config)
    if run.holds_run():
        warn_of_changed_code(run, config)
        if run.ended() == "diverged":
            run.restart()  # its last checkpoint may hold the seed of it
        run.remove_temporary()
        known = run.provenance()
        known = {"wandb_id": uuid.uuid4().hex[:8]} | known  # e.g. where it was mended by hand
        run.write_provenance(known | {"resumed": [*known.get("resumed", []), here]})
        run.set_status("running")
    else:
        run.create(config, here | {"wandb_id": uuid.uuid4().hex[:8]})


def finished(
    run: RunFolder, config: dict[str, Any], find: Callable | None = None
) -> dict[str, Any] | None:
    """The summary of a run in which nothing is left to do, which is told; None where there is.

    Args:
        find: as in `check_data`; None where the data were looked at before, for that takes time.

    Raises:
        RunError: the folder holds another run, or one that failed or diverged and is not to be
            tried again.
    """
    try:
        run.check_identity(config)
        if find is not None:
            check_data(run, config, find)
    except ValueError as error:
        raise RunError(str(error)) from error
    state = run.ended()  # where another process works on it, the lock will tell
    resumed = config["resume"] is not None
    if state in ("failed", "diverged") and not (resumed or config["retry_failed"]):
        raise RunError(
            f"{run.path} {state} before ({visible(str(run.summary().get('reason')))}); "
            f"retry_failed=true tries it again"
        )
    if state != "completed":
        return None
    warn_of_changed_code(run, config)
    summary = run.summary()
    log.info("%s is completed: %.2f %% test error", run.path, summary["test_error"])
    if resumed:
        for line in result_lines(config, summary, str(run.path)):
            log.info(line)
    return summary


def work(
    config: dict[str, Any], run: RunFolder, world: World, console: Console, in_sweep: bool
) -> float | None:
    """This process's part in a run; returns the lowest validation error in percent.

    Raises:
        ConfigError: a mistake found before anything was written.
        RunError, Interrupted: see `train`.
    """
    if not world.is_main:
        return follow(config, world)
    summary = finished(run, config, build.fingerprint)
    if summary is None:
        log.info(place(run) + title(config))
        wandb_mode = build.build_wandb_mode(config)

        def make_trainer():
            world.start()
            return build.build_trainer(config, run, world)

        if not in_sweep:  # a sweep was checked before it began; what fails now belongs on record
            try:
                trainer = make_trainer()
            except Lost as error:
                raise ConfigError(world.error_elsewhere() or str(error)) from error
            make_trainer = lambda: trainer  # noqa: E731
        summary = train(make_trainer, run, config, wandb_mode, console, world)
    return summary["val_error"]


def train(
    make_trainer: Callable[[], Trainer],
    run: RunFolder,
    config: dict[str, Any],
    wandb_mode: str,
    console: Console,
    world: World = ALONE,
) -> dict[str, Any]:
    """Trains a new or unfinished run to its end, and returns its summary.

    Whatever happens, the run folder says so: from the first moment on it holds the configuration
    and a status, and while this process works on it, its lock.

    Raises:
        Busy: another process works on the run.
        RunError: the run failed or diverged, now or before.
        Interrupted: asked to stop by Ctrl-C or SIGTERM; the state is saved.
    """
    lock = run.lock()
    with _there(run):
        run.path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Locked as error:
            raise Busy(f"{run.path} {error}") from error
    with _there(run), closing(lock):
        summary = finished(run, config)
        if summary is not None:  # another process was faster
            return summary
        begin(run, config)
        with log_file(run), ConsoleListener(console) as shown:
            summary = _train(make_trainer, run, config, wandb_mode, Guard(lock, run), shown, world)
            for line in result_lines(config, summary, str(run.path)):
                log.info(line)
    return summary


def _train(
    make_trainer: Callable[[], Trainer],
    run: RunFolder,
    config: dict[str, Any],
    wandb_mode: str,
    guard: Guard,
    shown: ConsoleListener,
    world: World,
) -> dict[str, Any]:
    name, known = run_name(config), run.provenance()
    trainer = tracker = None
    status, reason, summary, again = "completed", None, {}, ""
    try:
        if wandb_mode != "disabled":
            run_id, resumed = known["wandb_id"], "resumed" in known
            tracker = WandbListener(config, wandb_mode, run.path, name, run_id, resumed)
            run.write_provenance(known | {"wandb_id": tracker.run.id})  # an agent gives its own
            wandb_mode = tracker.run.mode
        made = make_trainer()
        note_device(run, made.device, made.facts)
        for line in opening_lines(config, made, wandb_mode):
            log.info(line)
        wanted = config["telemetry"]
        made.listeners = (Telemetry(directions=wanted == "directions"),) if wanted else ()
        made.resume()
        trainer = made  # from here on its counters speak for the run
        last = (tracker,) if tracker else ()
        trainer.listeners = (guard, shown, *made.listeners, *last)
        with stop_on_signal(trainer):
            trainer.fit()
        guard.check()
    except Busy:
        status = None  # nothing is written into a folder that another process has
        raise
    except (Interrupted, KeyboardInterrupt, SystemExit) as error:
        status, reason = "interrupted", str(error) or "stopped before its state was saved"
        raise
    except Exception as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, Diverged):
            status, reason = "diverged", str(error)
        elif is_the_machines(error, run):
            status, reason = "interrupted", str(error)
            again = f"; to continue: {to_continue(run)}" if run.holds_run() else ""
        elif isinstance(error, Lost):  # killed, if it could not say why
            found = world.error_elsewhere()
            status, reason = ("failed", found) if found else ("interrupted", str(error))
            if not found:
                again = f"; to continue: {to_continue(run)}"
        log.debug("the run %s", status, exc_info=True)  # the traceback, to train.log alone
        raise RunError(f"{run.path} {status}: {reason}{again}") from error
    finally:
        figures = []
        if status is not None:
            # first: nothing that follows may cost the result
            summary = put_on_record(run, status, reason, trainer)
            with told("the figures could not be drawn"):
                figures = figures_of(trainer, run, name, summary) if trainer else []
        if tracker is not None:
            tracker.finish(summary, figures)
    if summary["status"] != "completed":  # trained to its end, and then its numbers failed
        raise RunError(f"{run.path} {summary['status']}: {summary['reason']}")
    return summary


def follow(config: dict[str, Any], world: World) -> None:
    """The part in a run of a process other than the first: the same steps, and nothing on record.

    Raises:
        Interrupted: as in every process.
        RunError: the run diverged, which every process finds.
    """
    if not world.start():
        return
    try:
        trainer = build.build_trainer(config, None, world)
        trainer.resume()
        with stop_on_signal(trainer):
            trainer.fit()
    except Interrupted:
        raise
    except Diverged as error:
        raise RunError(str(error)) from error
    except Exception as error:
        if not (isinstance(error, Lost) and world.has_ended()):  # then rank 0 had its reason to go
            world.fail(error)
            raise RunError(str(error)) from error


@contextmanager
def _there(run: RunFolder):
    """Says in one message that the folder itself failed: read-only, full, moved, or gone."""
    try:
        yield
    except (OSError, Damaged) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{run.path} cannot be written to, or is gone ({why})") from error
