"""The plan of a sweep: every run by name and state, checked before the first begins."""

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.table import Table

from sdnet.config import compose
from sdnet.config.errors import ConfigError, explain
from sdnet.data.split import is_counted
from sdnet.launch import build
from sdnet.launch.budget import budgeted, epochs_shown, training_cost
from sdnet.launch.own_network import try_network
from sdnet.launch.progress import duration, seconds_taken
from sdnet.launch.provenance import check_data
from sdnet.launch.trial import check_least_rows
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import identity
from sdnet.runs.shown import counted

log = logging.getLogger("sdnet")
T = TypeVar("T")
DATA = ("dataset",)  # what the data of a run depend on, but for their split
UNFINISHED = ("new", "interrupted")
TELL_SECONDS = 5.0  # between signs of life while runs are planned


@dataclass
class Point:
    """One run of a sweep: what to type for it, what it means, where it goes, what is there."""

    overrides: list[str]
    label: str  # its number and what is swept
    swept: str  # those of the overrides that other runs of the sweep have not
    config: dict[str, Any]
    run: RunFolder
    state: str

    @property
    def name(self) -> str:
        return self.run.path.name

    def is_left(self) -> bool:
        """Whether this process has it to do."""
        failed = self.state in ("failed", "diverged") and self.config["retry_failed"]
        return self.state in UNFINISHED or failed


def plan(config: DictConfig, grid: bool = True) -> list[Point]:
    """The points of a sweep, each run once, with the state of its folder.

    Args:
        grid: every combination; else, for a sweeper that chooses its points as it goes, the ends
            of its ranges and each value once.

    Raises:
        ConfigError: a point that is no valid configuration, with its overrides; or whose folder
            holds another run.
    """
    compose.check_hydra(config.hydra)
    points, seen = {}, _Once()
    every = _expand(config, grid)
    common = set(every[0]).intersection(*every)
    for number, overrides in enumerate(_telling("planned", every)):
        swept = " ".join(override for override in overrides if override not in common)
        label = f"run {number + 1} of {len(every)}" + (f" ({swept})" if swept else "")
        with _errors_in(label):
            point = _compose(config, overrides, number, label, swept)
            if grid and point.config["seeds"]:
                seeds = ",".join(map(str, point.config["seeds"]))
                raise ConfigError(f"seeds is for a search; here it is seed={seeds}, got [{seeds}]")
            first = points.setdefault(point.run.path, point)
            if identity(first.config) != identity(point.config):
                raise ConfigError(f"it has the folder of {first.label}: {point.run.path}")
            if first.config["dataset"] != point.config["dataset"]:
                both = (first.config, point.config)
                marks = {seen.call(build.fingerprint, each, DATA) for each in both}
                if len(marks) > 1:
                    raise ConfigError(
                        f"it has the folder of {first.label}, but other images: data that differ "
                        f"have another dataset.name=..."
                    )
    if len(points) < len(every):
        log.info("%d combinations are %d runs", len(every), len(points))
    return list(points.values())


def _telling(done: str, items: Sequence[T]) -> Iterator[T]:
    """The items, with a line now and then of how many runs are done."""
    told = time.monotonic()
    for i, item in enumerate(items):
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            log.info("%s %d of %d runs", done, i, len(items))
        yield item


def _expand(config: DictConfig, grid: bool) -> list[list[str]]:
    """The overrides of each point."""
    loader = GlobalHydra.instance().config_loader()
    # As text: an interpolation in it is about each run's own configuration.
    hydra = OmegaConf.to_container(config.hydra, resolve=False)
    params = hydra["sweeper"].get("params") or {}
    typed = [*(f"{key}={value}" for key, value in params.items()), *hydra["overrides"]["task"]]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    for override in filter(Override.is_sweep_override, overrides):
        key = override.get_key_element()
        if key == "sweep":
            raise ConfigError("sweep must be one preset: several would not be applied")
        if grid and not override.is_discrete_sweep():
            raise ConfigError(f"{key} is a range: it needs hydra/sweeper=optuna")
        if key in ("seed", "seeds") and not grid:
            raise ConfigError(
                f"{key} must be one value in a search, which would choose the luckiest: "
                "seeds=[0,1,2] has the mean of several minimised"
            )
    latest = {override.get_key_element(): override for override in overrides}
    values = [_values(override) for override in latest.values()]
    if not all(values):
        raise ConfigError("a setting is swept over no values at all")
    if grid:
        return [list(point) for point in itertools.product(*values)]
    first = [options[0] for options in values]
    points = [first]
    for i, options in enumerate(values):
        points += [[*first[:i], option, *first[i + 1 :]] for option in options[1:]]
    return points


def _values(override: Override) -> list[str]:
    """What a setting is set to, one after the other; of a range the ends."""
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
    try:
        composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    except Exception as error:
        raise ConfigError(explain(error)) from error
    plain, folder = composed_as(composed, number)
    other, other_folder = composed_as(composed, number + 1)
    if folder != other_folder or identity(plain) != identity(other):
        raise ConfigError(
            f"{folder} depends on hydra.job.num or hydra.job.id, which are others when a sweep "
            f"continues"
        )
    if plain["resume"] is not None:
        raise ConfigError(
            "resume= continues a single run; a sweep continues by itself, leave it out"
        )
    run = RunFolder(folder)
    try:
        run.check_identity(plain)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Point(overrides, label, swept, plain, run, run.state())


def composed_as(composed: DictConfig, number: int) -> tuple[dict[str, Any], Path]:
    """The plain configuration of a point and its folder, as the job of that number."""
    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # for ${hydra:...} in the folder's name
    try:
        plain = compose.resolve(composed)
        return plain, Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before


@contextmanager
def _errors_in(label: str):
    """Says in which run of the sweep a mistake was found."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"in {label}: {explain(error)}") from error


def check(points: list[Point], local: bool, processes: int, listing: bool = False) -> None:
    """Builds what the runs that are left will build, the network on the meta device.

    Args:
        local: whether the runs will be computed on this machine, with its devices.
        processes: that work together on each of them.
        listing: whether images are to be counted only, not read.

    Raises:
        ConfigError: the first mistake, and the run in which it is.
    """
    seen = _Once()
    for point in points:
        with _errors_in(point.label):
            check_data(point.run, point.config, lambda config: seen.call(_facts, config, DATA)[4])
    left = [point for point in points if point.is_left()]
    for point in _telling("checked", left):
        config = point.config
        with _errors_in(point.label):
            device = seen.call(build.build_device, config, ("trainer",)) if local else "cpu"
            shape, _, images, *_ = seen.call(_facts, config, DATA)
            build.check_batches(config, images, processes)
            model = _network(config, seen)
            schedule = build.build_schedule(config)
            if config["trainer"]["budget"] is not None:
                cost = training_cost(config, model, schedule, shape)
                config = point.config = budgeted(config, cost, images)
            least = (model, schedule, shape, images, processes)
            groups = ("dataset", "model", "schedule", "trainer")
            seen.call(check_least_rows, config, groups, *least)
            groups = ("optimizer", "lr_schedule", "trainer")
            seen.call(build.check_optimization, config, groups, model, device)
            seen.call(build.build_wandb_mode, config, ("wandb",))
    for point in left if not listing else ():  # the slow part, once nothing else can be wrong
        with _errors_in(point.label):
            if seen.call(_facts, point.config, DATA)[3]:
                seen.call(build.build_data, point.config, DATA)


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
    image_shape, classes, *_ = seen.call(_facts, config, DATA)

    def network(config):
        schedule = build.build_schedule(config)
        try:
            with torch.device("meta"):
                model = build.build_model(config, classes, image_shape[0], schedule)
            try_network(model, image_shape, classes)
        except Exception:  # one's own may need values, as in `torch.linspace(...)[0].item()`
            model = build.build_model(config, classes, image_shape[0], schedule)
            try_network(model, image_shape, classes)
        return build.planned(model, schedule)

    return seen.call(network, config, ("dataset", "model", "schedule", "trainer"))


def _facts(config: dict[str, Any]) -> tuple[tuple[int, int, int], int, int, bool, str | None]:
    """(C, H, W), classes and training images of a data set, whether it is yet to be read, and its
    fingerprint."""
    data = build.build_data(config, listing=True)
    counts = len(data.classes), len(data.train)
    return data.image_shape, *counts, is_counted(data.train), data.fingerprint


def show(console: Console, points: list[Point]) -> None:
    """Prints the list of runs: name, state, expected depth and compute, and the time that is left.

    The time is that of the runs that are done.
    """

    def cost(config, model):
        shape = seen.call(_facts, config, DATA)[0]
        return training_cost(config, model, build.build_schedule(config), shape)

    seen = _Once()
    columns = ["run", "swept", "state", "expected depth", "expected compute"]
    if any(point.config["trainer"]["budget"] is not None for point in points):
        columns.append("epochs")
    table = Table(*columns, box=box.SIMPLE)
    table.columns[0].overflow, table.columns[1].no_wrap = "fold", True
    for point in points:
        with _errors_in(point.label):
            model = _network(point.config, seen)
            groups = ("dataset", "model", "schedule", "trainer")
            costs = seen.call(cost, point.config, groups, model)
        share = f"{costs.expected_share:.1%}"
        depth = f"{costs.expected_blocks:.2f} of {len(costs.blocks)}"
        epochs = epochs_shown(point.config, costs, seen.call(_facts, point.config, DATA)[2])
        row = (point.name, point.swept.replace(" ", "\n"), describe(point), depth, share, epochs)
        table.add_row(*row[: len(columns)])
    console.print(table)
    console.print(count(points), soft_wrap=True)
    if any(point.config["show"] == "time" for point in points):
        from sdnet.launch.measure import seconds_of

        groups = ("dataset", "model", "schedule", "optimizer", "trainer")
        every = [seen.call(seconds_of, p.config, groups) for p in points if p.is_left()]
        text = duration(sum(every))
        console.print(f"about {text} for what is left on this machine, by a few steps of each")
        return
    taken = [seconds_taken(p.run.summary()) for p in points if p.state == "completed"]
    left = sum(point.is_left() for point in points)
    if taken and left:
        text = duration(left * sum(taken) / len(taken))
        console.print(f"about {text} for what is left, one run after the other", soft_wrap=True)


def describe(point: Point) -> str:
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


def count(points: list[Point]) -> str:
    folders = sorted({str(point.run.path.parent) for point in points})
    names = {"completed": "done", "interrupted": "to resume", "new": "to run"}
    again = dict.fromkeys(("failed", "diverged"), "to try again")
    counts = Counter(
        (names | again if point.is_left() else names).get(point.state, point.state)
        for point in points
    )
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"sweep {' '.join(folders)}: {counted(len(points), 'run')}: {parts}"
