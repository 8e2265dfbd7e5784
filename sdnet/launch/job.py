"""One job: a composed configuration is checked, and then shown or trained."""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sdnet import processes
from sdnet.config import compose
from sdnet.config.errors import ConfigError, RunError
from sdnet.runs.folder import RunFolder


def job(cfg: DictConfig) -> float | None:
    """Called by Hydra, once for each run; returns the lowest validation error in percent."""
    hydra = HydraConfig.get()
    folder = Path(os.path.relpath(hydra.runtime.output_dir))
    try:
        config = compose.resolve(cfg)
        if config["resume"] is not None:
            config = compose.resumed(config, hydra.overrides.task)
        if config["show"]:
            return show(config) if processes.is_main() else None
        return train(config, folder, hydra.mode == RunMode.MULTIRUN)
    except ConfigError:
        compose.remove_empty(folder)
        raise


def show(config: dict[str, Any]) -> None:
    """Prints what would be trained."""
    from sdnet.analysis.plan import show_plan
    from sdnet.launch import build, measure
    from sdnet.launch.progress import duration
    from sdnet.launch.trial import try_network
    from sdnet.listeners import console

    build.build_device(config)
    data = build.build_data(config, listing=True)
    build.check_batches(config, len(data.train), processes.environment()[1])
    schedule = build.build_schedule(config)
    model = build.build_model(config, len(data.classes), data.image_shape[0], schedule)
    try_network(model, data.image_shape, len(data.classes))
    build.check_optimization(config, model)
    shown = console.set_up()
    show_plan(shown, config, data, build.planned(model, schedule))
    if config["show"] == "time":
        seconds = measure.seconds_of(config)
        text = f"{'time':17} about {duration(seconds)} on this machine, by a few steps"
        shown.print(text, highlight=False, soft_wrap=True)


def train(config: dict[str, Any], folder: Path, in_sweep: bool) -> float | None:
    """Trains in a new or a resumed run folder; returns the lowest validation error in percent."""
    from sdnet.launch import session
    from sdnet.launch.progress import number
    from sdnet.launch.provenance import to_continue
    from sdnet.listeners import console as consoles
    from sdnet.training import distributed
    from sdnet.training.counters import Interrupted

    run = RunFolder(config["resume"] or folder)
    console = consoles.set_up(number(run))
    with distributed.joined(config["trainer"]["device"]) as world:
        try:
            return session.work(config, run, world, console, in_sweep)
        except Interrupted as error:
            if world.is_main:
                print(f"{error}; to continue: {to_continue(run)}")
            session.hand_over(error)
            raise KeyboardInterrupt from error
        except RunError as error:
            if not in_sweep:
                raise
            ended = type(error)(str(error))
        raise ended  # without its traceback: its frames hold the network, and Hydra keeps the error
