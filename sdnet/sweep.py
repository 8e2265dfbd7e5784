"""Sweeps: `python train.py -m ...` plans every run before the first begins, and runs what is left.

Hydra composes the points and its launchers run them; which of them still have something to do is
read from the run folders, so that the same command, given again, continues a sweep, and one that
overlaps with it shares its runs. Optuna and other sweepers, which choose their points as they go,
keep the lead; here the ends of their ranges are checked.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.table import Table

from sdnet import config as configs
from sdnet import run as runs
from sdnet.training import distributed

log = logging.getLogger("sdnet")
UNFINISHED = ("new", "interrupted")


class Ended(BaseException):
    """The sweep is over. Not an Exception: Hydra would turn one in a callback into a warning."""

    def __init__(self, status: int | str):
        self.status = status


@dataclass
class Point:
    """One run of a sweep: what to type for it, what it means, where it goes, what is there."""

    overrides: list[str]
    label: str  # its number and what is swept
    swept: str  # those of the overrides that other runs of the sweep have not
    config: dict[str, Any]
    run: runs.RunFolder
    state: str

    @property
    def name(self) -> str:
        return self.run.path.name

    def is_left(self) -> bool:
        """Whether this process has it to do."""
        failed = self.state in ("failed", "diverged") and self.config["retry_failed"]
        return self.state in UNFINISHED or failed


class Callback(HydraCallback):
    """Called by Hydra when a multirun starts; see `hydra.callbacks` in conf/config.yaml."""

    task: TaskFunction | None = None  # what is to be called for each run
    started = False
    # the folder and W&B's mode of a sweep that another sweeper than Hydra's own carries out
    left_to_sweeper: tuple[Path, str] | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        type(self).started = True
        try:
            status = run_sweep(config, self.task)
        except Exception as error:
            raise Ended(1) from error
        if status is not None:
            raise Ended(status)
        type(self).left_to_sweeper = (Path(config.hydra.sweep.dir), config.wandb.mode)


def run_sweep(config: DictConfig, task: TaskFunction) -> int | None:
    """Plans and runs a sweep; returns the exit status, or None where Hydra's sweeper goes on."""
    from sdnet.training import console as consoles

    console = consoles.set_up()
    if distributed.environment()[1] > 1:
        raise configs.ConfigError(
            "-m does not work under torchrun, whose processes would each run the sweep. Give the "
            "sweep without torchrun: hydra/launcher=submitit_slurm_multi_gpu starts several "
            "processes for each run (hydra.launcher.tasks_per_node; submitit_local has it too)"
        )
    points = plan(config)
    launcher = config.hydra.launcher
    processes = launcher.get("tasks_per_node", 1) * launcher.get("nodes", 1)
    check(points, "submitit" not in launcher._target_, processes)
    if config.show:
        show(console, points)
        return 0
    if not _is_basic(config):
        if any(point.config["dataset"]["validation"] == 0 for point in points):
            raise configs.ConfigError(
                "dataset.validation must set images aside: the sweeper minimises their error, got 0"
            )
        return None
    announce(points)
    left = [point for point in points if point.is_left()]
    failed = launch(config, left, task) if left else 0
    consoles.set_up()  # the launcher configured logging anew
    mode = config.wandb.mode
    return max(failed, conclude([point.run for point in points], console, mode))


def _is_basic(config: DictConfig) -> bool:
    return config.hydra.sweeper._target_.endswith(".BasicSweeper")


# -- before the first run -------------------------------------------------------------------------


def plan(config: DictConfig) -> list[Point]:
    """The points of a sweep, each run once, with the state of its folder.

    Raises:
        ConfigError: a point that is no valid configuration, with its overrides; or whose folder
            holds another run.
    """
    subdir = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])
    if "hydra:job" in subdir:
        raise configs.ConfigError(
            f"hydra.sweep.subdir={subdir} depends on the job's number, which changes when a sweep "
            f"continues"
        )
    points = {}
    every = _expand(config)
    common = set(every[0]).intersection(*every)
    for number, overrides in enumerate(every):
        swept = " ".join(override for override in overrides if override not in common)
        label = f"run {number + 1} of {len(every)}" + (f" ({swept})" if swept else "")
        with _errors_in(label):
            point = _compose(config, overrides, number, label, swept)
            first = points.setdefault(point.run.path, point)
            if runs.identity(first.config) != runs.identity(point.config):
                raise configs.ConfigError(f"it has the folder of {first.label}: {point.run.path}")
    if len(points) < len(every):
        log.info("%d combinations are %d runs", len(every), len(points))
    return list(points.values())


def _expand(config: DictConfig) -> list[list[str]]:
    """The overrides of each point; for a sweeper of ranges, those of the ranges' ends."""
    loader = GlobalHydra.instance().config_loader()
    # As text: an interpolation in it is about each run's own configuration.
    hydra = OmegaConf.to_container(config.hydra, resolve=False)
    params = hydra["sweeper"].get("params") or {}
    typed = [*(f"{key}={value}" for key, value in params.items()), *hydra["overrides"]["task"]]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    for override in filter(Override.is_sweep_override, overrides):
        key = override.get_key_element()
        if key == "sweep":
            raise configs.ConfigError("sweep must be one preset: several would not be applied")
        if _is_basic(config) and not override.is_discrete_sweep():
            raise configs.ConfigError(f"{key} is a range: it needs hydra/sweeper=optuna")
    if _is_basic(config):
        points = BasicSweeper.split_arguments(overrides, None)[0]
        if not points:
            raise configs.ConfigError("a setting is swept over no values at all")
        return points
    latest = {override.get_key_element(): override for override in overrides}
    values = [_ends(override) for override in latest.values()]
    first = [options[0] for options in values]
    points = [first]
    for i, options in enumerate(values):
        points += [[*first[:i], option, *first[i + 1 :]] for option in options[1:]]
    return points


def _ends(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    return [f"{key}={text}" for text in override.sweep_string_iterator()]


def _compose(
    config: DictConfig, overrides: list[str], number: int, label: str, swept: str
) -> Point:
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # for ${hydra:...} in the folder's name
    try:
        plain = configs.resolve(composed)
        folder = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before
    if plain["resume"] is not None:
        raise configs.ConfigError(
            "resume= continues a single run; a sweep continues by itself, leave it out"
        )
    run = runs.RunFolder(folder)
    try:
        run.check_identity(plain)
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    return Point(overrides, label, swept, plain, run, run.state())


@contextmanager
def _errors_in(label: str):
    """Says in which run of the sweep a mistake was found."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise configs.ConfigError(f"in {label}: {configs.explain(error)}") from error


def check(points: list[Point], local: bool, processes: int) -> None:
    """Builds what the runs that are left will build, the network on the meta device.

    Args:
        local: whether the runs will be computed on this machine, with its devices.
        processes: that work together on each of them.

    Raises:
        ConfigError: the first mistake, and the run in which it is.
    """
    from sdnet import build

    seen = _Once()
    for point in points:
        if not point.is_left():
            continue
        config = point.config
        with _errors_in(point.label):
            if local:
                seen.call(build.build_device, config, ("trainer",))
            build.check_batches(config, seen.call(_facts, config, ("dataset",))[2], processes)
            model = _network(config, seen)
            seen.call(build.check_optimization, config, ("optimizer", "lr_schedule"), model)
            seen.call(build.build_wandb_mode, config, ("wandb",))


class _Once:
    """Calls a function of a configuration once for equal settings of the groups that it reads."""

    def __init__(self):
        self.results = {}

    def call(self, function: Callable, config: dict[str, Any], groups: tuple[str, ...], *args):
        key = function.__name__ + json.dumps([config[g] for g in groups], sort_keys=True)
        if key not in self.results:
            self.results[key] = function(config, *args)
        return self.results[key]


def _network(config: dict[str, Any], seen: _Once):
    """The network of a run on the meta device: shapes without values."""
    image_shape, classes, _ = seen.call(_facts, config, ("dataset",))

    def network(config):
        from sdnet import build

        with torch.device("meta"):
            return build.build_model(config, classes, image_shape[0])

    return seen.call(network, config, ("dataset", "model", "schedule", "trainer"))


def _facts(config: dict[str, Any]) -> tuple[tuple[int, int, int], int, int]:
    """(C, H, W), classes and training images of a data set, which is loaded for it."""
    from sdnet import build

    data = build.build_data(config)
    return data.image_shape, len(data.classes), len(data.train)


def show(console: Console, points: list[Point]) -> None:
    """Prints the list of runs: name, state, expected depth and compute."""
    from sdnet.analysis.cost import network_cost
    from sdnet.analysis.plan import expected_compute

    def cost(config, model):
        return network_cost(model, seen.call(_facts, config, ("dataset",))[0])

    seen = _Once()
    columns = ("run", "swept", "state", "expected depth", "expected compute")
    table = Table(*columns, box=box.SIMPLE)
    for point in points:
        model = _network(point.config, seen)
        costs = seen.call(cost, point.config, ("dataset", "model", "schedule"), model)
        share = expected_compute(costs, point.config)
        depth = f"{costs.expected_blocks:.2f} of {len(costs.blocks)}"
        table.add_row(point.name, point.swept, _describe(point), depth, f"{share:.1%}")
    console.print(table, soft_wrap=True)
    console.print(_count(points), soft_wrap=True)


def _describe(point: Point) -> str:
    rows = point.run.rows()
    reached = f"after epoch {rows[-1]['epoch']:g}" if rows else "from the start"
    return {
        "new": "to run",
        "interrupted": f"to resume {reached}",
        "completed": "done",
        "running": "running in another process",
    }.get(point.state) or (
        f"{point.state}: to try again" if point.is_left() else f"{point.state} (retry_failed=true)"
    )


def _count(points: list[Point]) -> str:
    folders = sorted({str(point.run.path.parent) for point in points})
    names = {"completed": "done", "interrupted": "to resume", "new": "to run"}
    again = dict.fromkeys(("failed", "diverged"), "to try again")
    counts = Counter(
        (names | again if point.is_left() else names).get(point.state, point.state)
        for point in points
    )
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    runs_text = "1 run" if len(points) == 1 else f"{len(points)} runs"
    return f"sweep {' '.join(folders)}: {runs_text}: {parts}"


# -- the runs -------------------------------------------------------------------------------------


def announce(points: list[Point]) -> None:
    """A line for the sweep, and one for each run that will not be started."""
    log.info(_count(points))
    for point in points:
        if point.state == "completed":
            error = point.run.summary()["test_error"]
            log.info("done: %s, %.2f %% test error", point.name, error)
        elif not point.is_left():
            log.info("left out: %s (%s): %s", point.name, point.swept, _describe(point))


def launch(config: DictConfig, points: list[Point], task: TaskFunction) -> int:
    """Runs the points on Hydra's launcher; returns 1 where one failed outside its run folder."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for processes it starts
    loader = GlobalHydra.instance().config_loader()
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks(config)),
        task_function=task,
        config=config,
    )
    size = config.hydra.sweeper.max_batch_size or len(points)
    results = []
    try:
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
    for point, result in zip(points, results, strict=True):
        error = result._return_value if result.status == JobStatus.FAILED else None
        recorded = isinstance(error, configs.RunError) and point.run.state() != "new"
        if error is not None and not recorded:
            log.error("%s: %s: %s", point.run.path, type(error).__name__, configs.explain(error))
            status = 1
    return status


def conclude(folders: list[runs.RunFolder], console: Console, wandb_mode: str) -> int:
    """Names the runs that are not completed and writes the report; returns the exit status."""
    from sdnet import tracking
    from sdnet.analysis.report import ReportError, write_report

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
            f": {reason}" if reason else "",
        )
    for folder in sorted({run.path.parent for run in folders}):
        try:
            report = write_report([folder], console=console)
            if report is not None:
                tracking.log_report(report, wandb_mode)
        except ReportError as error:  # there is no run
            log.error("no report: %s", error)
        except Exception as error:  # takes nothing away from what the runs have
            log.error("the report failed: %s: %s", type(error).__name__, error)
            status = 1
    return status


def conclude_folder(folder: Path, wandb_mode: str) -> int:
    """`conclude` for every run in a folder, where a sweeper has chosen the points as it went."""
    from sdnet.training import console as consoles

    found = sorted(path.parent for path in folder.glob("*/config.yaml"))
    return conclude([runs.RunFolder(path) for path in found], consoles.set_up(), wandb_mode)
