"""One job: a composed configuration is checked, and then shown or trained."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sdnet import processes
from sdnet.config import compose
from sdnet.config.errors import NotBegun, RunError, explain
from sdnet.runs.folder import RunFolder


def job(cfg: DictConfig) -> float | None:
    """Called by Hydra, once for each run; returns the lowest validation error in percent.

    With `seeds` it is a run for each of them, and the mean of their errors.
    """
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    if hydra.job.chdir:
        os.chdir(hydra.runtime.cwd)
    folder = Path(os.path.relpath(hydra.runtime.output_dir))
    try:
        compose.check_hydra(hydra)
        config = compose.resolve(cfg)
        if config["resume"] is not None:
            config = compose.resumed(config, hydra.overrides.task)
        if config["show"]:
            return show(config) if processes.is_main() else None
        if config["seeds"]:
            from sdnet.launch.seeds import mean_error

            return mean_error(config, folder, partial(train, in_sweep=in_sweep))
        return train(config, folder, in_sweep)
    except (HydraException, OmegaConfBaseException) as error:
        if in_sweep:
            raise
        # Where a job raises an error, Hydra prints a line with all overrides before it.
        raise SystemExit(f"error: {explain(error)}") from error
    finally:
        compose.remove_empty(folder)


def show(config: dict[str, Any]) -> None:
    """Prints what would be trained."""
    from sdnet.analysis.plan import show_plan
    from sdnet.launch import build, measure
    from sdnet.launch.budget import budgeted, training_cost
    from sdnet.launch.own_network import try_network
    from sdnet.launch.progress import duration
    from sdnet.launch.trial import check_least_rows
    from sdnet.listeners import console

    size = processes.environment()[1]
    device = build.build_device(config)
    if config["wandb"]["mode"] == "online":  # the others need nothing, and wandb is slow to import
        build.build_wandb_mode(config)
    data = build.build_data(config, listing=True)
    build.check_batches(config, len(data.train), size)
    schedule = build.build_schedule(config)
    model = build.build_model(config, len(data.classes), data.image_shape[0], schedule)
    try_network(model, data.image_shape, len(data.classes))
    check_least_rows(config, model, schedule, data.image_shape, len(data.train), size)
    cost = training_cost(config, model, schedule, data.image_shape)
    config = budgeted(config, cost, len(data.train))
    build.check_optimization(config, model, device)
    shown = console.set_up()
    show_plan(shown, config, data, model, cost)
    if config["show"] == "time":
        seconds = measure.seconds_of(config)
        text = f"{'time':17} about {duration(seconds)} on this machine, by a few steps"
        shown.print(text, highlight=False, soft_wrap=True)


def train(config: dict[str, Any], folder: Path, in_sweep: bool) -> float | None:
    """Trains in a new or a resumed run folder; returns the lowest validation error in percent."""
    from sdnet.launch import session
    from sdnet.launch.progress import number
    from sdnet.launch.provenance import to_continue
    from sdnet.launch.signals import hand_over
    from sdnet.listeners import console as consoles
    from sdnet.training import device as devices
    from sdnet.training import distributed
    from sdnet.training.counters import Interrupted

    if devices.context_is_lost():  # by a run before this one, in the same sweep
        raise NotBegun(
            "a CUDA error has ended the context of this process, and no run can begin in it: "
            "the same command goes on with those left"
        )
    run = RunFolder(config["resume"] or folder)
    console = consoles.set_up(number(run))
    with distributed.joined(config["trainer"]["device"]) as world:
        try:
            return session.work(config, run, world, console, in_sweep)
        except Interrupted as error:
            if world.is_main:
                print(f"{error}; to continue: {to_continue(run)}")
            hand_over(error)
            raise processes.Stopped(error.number or signal.SIGINT) from error
        except RunError as error:
            if not in_sweep:
                raise
            ended = type(error)(str(error))
        raise ended  # without its traceback: its frames hold the network, and Hydra keeps the error
