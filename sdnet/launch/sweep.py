"""Sweeps: `python train.py -m ...` plans every run before the first begins, and runs what is left.

Hydra composes the points and its launchers run them; which of them still have something to do is
read from the run folders, so that the same command, given again, continues a sweep, and one that
overlaps with it shares its runs. Optuna and other sweepers, which choose their points as they go,
keep the lead; here the ends of their ranges are checked.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write
from rich.console import Console

from sdnet import processes
from sdnet.config.errors import ConfigError, NotBegun, RunError, explain
from sdnet.launch.progress import number, remember_runs
from sdnet.launch.provenance import warn_of_changed_code
from sdnet.launch.sweep_plan import Point, check, count, describe, plan, show
from sdnet.listeners import console as consoles
from sdnet.listeners import wandb as tracking
from sdnet.listeners.board import Board
from sdnet.runs.folder import RunFolder
from sdnet.runs.shown import visible

log = logging.getLogger("sdnet")


def run_grid(config: DictConfig, task: TaskFunction, context: HydraContext) -> None:
    """Plans a sweep over every combination and runs what is left of it.

    Raises:
        ConfigError: a mistake in one of the runs, before any begins.
        RunError: not every run is completed; what is missing was logged.
    """
    with _stoppable():
        console = consoles.set_up()
        points = _planned(config, console, grid=True)
        if config.show:
            return
        announce(points)
        remember_runs([point.name for point in points])
        failed, tried = 0, set()
        while left := [p for p in points if p.is_left() and p.name not in tried]:
            tried |= {point.name for point in left}
            failed |= launch(config, left, task, context)
            for point in points:  # another process may have left one since
                point.state = point.run.state()
        console = consoles.set_up()  # the launcher configured logging anew
        failed |= conclude([point.run for point in points], console, config.wandb.mode)
    _end(failed)


def run_search(config: DictConfig, search: Callable[[], Any]) -> None:
    """Plans the ends of a search's ranges, searches, and reports on all runs in its folder.

    Args:
        search: the work of a sweeper that chooses its points as it goes.

    Raises:
        ConfigError, RunError: as `run_grid`; also where the sweeper gave up.
    """
    with _stoppable():
        console = consoles.set_up()
        points = _planned(config, console, grid=False)
        if config.show:
            return
        if any(point.config["dataset"]["validation"] == 0 for point in points):
            raise ConfigError(
                "dataset.validation must set images aside: the sweeper minimises their error, got 0"
            )
        gave_up = None
        try:
            search()
        except Exception as error:  # e.g. optuna, when every trial failed
            gave_up = error
        found = sorted(path.parent for path in Path(config.hydra.sweep.dir).glob("*/config.yaml"))
        console = consoles.set_up()
        failed = conclude([RunFolder(path) for path in found], console, config.wandb.mode)
    if gave_up is not None:
        raise RunError(f"the sweeper gave up: {explain(gave_up)}") from gave_up
    _end(failed)


@contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("the sweep was stopped; the same command continues it")
        raise


def _end(failed: int) -> None:
    if failed:
        raise RunError("the sweep is not complete; what is missing is said above")


def _planned(config: DictConfig, console: Console, grid: bool) -> list[Point]:
    """The points, checked, and shown where that is all that is asked for."""
    if processes.environment()[1] > 1:
        raise ConfigError(
            "-m does not work under torchrun, whose processes would each run the sweep. Give the "
            "sweep without torchrun: hydra/launcher=submitit_slurm_multi_gpu starts several "
            "processes for each run (hydra.launcher.tasks_per_node; submitit_local has it too)"
        )
    log.info("planning the sweep")
    points = plan(config, grid)
    launcher = config.hydra.launcher
    tasks = launcher.get("tasks_per_node", 1) * launcher.get("nodes", 1)
    check(points, "submitit" not in launcher._target_, tasks, listing=bool(config.show))
    if config.show:
        show(console, points)
    return points


def announce(points: list[Point]) -> None:
    """A line for the sweep, and one for each run that will not be started."""
    log.info(count(points))
    for point in points:
        if point.state == "completed":
            warn_of_changed_code(point.run, point.config)
            error = point.run.summary()["test_error"]
            log.info("done: %s, %.2f %% test error", point.name, error)
        elif not point.is_left():
            log.info("left out: %s (%s): %s", point.name, point.swept, describe(point))


def launch(
    config: DictConfig, points: list[Point], task: TaskFunction, context: HydraContext
) -> int:
    """Runs the points on Hydra's launcher; returns 1 where one failed outside its run folder."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for processes it starts
    with read_write(
        config.hydra
    ):  # the launcher makes it; what names it may be swept: then several
        config.hydra.sweep.dir = str(points[0].run.path.parent)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=task, config=config
    )
    size = config.hydra.sweeper.max_batch_size or len(points)
    results = []
    try:
        with _shown(config, points):
            for i in range(0, len(points), size):
                batch = [point.overrides for point in points[i : i + size]]
                results += launcher.launch(batch, initial_job_idx=i)
    except Exception as error:  # e.g. a process was killed, with whatever it was doing
        lines = str(error).strip().splitlines()
        log.error(
            "the launcher gave up: %s: %s",
            type(error).__name__,
            " … ".join(lines[:1] + lines[1:][-1:]),
        )
        return 1
    status = 0
    left = None
    for point, result in zip(points, results, strict=True):
        error = result._return_value if result.status == JobStatus.FAILED else None
        if isinstance(error, NotBegun):  # told once; `conclude` names the runs
            left, status = error, 1
            continue
        recorded = isinstance(error, RunError) and point.run.state() != "new"
        if error is not None and not recorded:
            log.error("%s: %s: %s", point.run.path, type(error).__name__, explain(error))
            status = 1
    if left is not None:
        log.error(explain(left))
    return status


@contextmanager
def _shown(config: DictConfig, points: list[Point]) -> Iterator[None]:
    """Several runs at once on a terminal: a bar for each, instead of their lines."""
    if "BasicLauncher" in config.hydra.launcher._target_ or not sys.stdout.isatty():
        yield
        return
    console = consoles.set_up()
    runs = {}
    for point in points:
        pairs = [override.split("=", 1) for override in point.swept.split()]
        short = [f"{key.rpartition('.')[2]}={value}" for key, value in pairs]
        name = " ".join([number(point.run), *short])
        runs[name] = (point.run, point.config["trainer"]["epochs"])
    os.environ[consoles.SHOWN] = "1"
    try:
        with Board(console, runs):
            yield
    finally:
        del os.environ[consoles.SHOWN]


def conclude(folders: list[RunFolder], console: Console, wandb_mode: str) -> int:
    """Names the runs that are not completed and writes the report; returns the exit status."""
    status = 0
    for run in folders:
        state = run.state()
        if state == "completed":
            continue
        if state == "running":
            log.info("left to another process: %s", run.path)
            continue
        status = 1
        reason = run.summary().get("reason") if state != "new" else None
        log.error(
            "%s: %s%s",
            "not run" if state == "new" else state,
            run.path,
            f": {visible(str(reason))}" if reason else "",
        )
    for folder in sorted({run.path.parent for run in folders}):
        status |= _report(folder, console, wandb_mode)
    return status


def _report(folder: Path, console: Console, wandb_mode: str) -> int:
    try:
        from sdnet.analysis.report import ReportError, write_report
    except ModuleNotFoundError as error:
        log.warning("no report: %s is not installed; sdnet's extra `report` has it", error.name)
        return 0
    try:
        report = write_report([folder], console=console)
        if report is not None:
            tracking.log_report(report, wandb_mode)
    except ReportError as error:  # there is no run
        log.error("no report: %s", error)
    except Exception as error:  # takes nothing away from what the runs have
        log.error("the report failed: %s: %s", type(error).__name__, error)
        return 1
    return 0
