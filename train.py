"""Trains a residual network with stochastic depth as the composed configuration says.

python train.py schedule.p_L=0.8 seed=1            # see conf/ for every setting
python train.py show=true                          # what would be run
python train.py -m schedule.p_L=0.5,0.8 seed=0,1   # a sweep; the same command continues it
python train.py resume=outputs/<run name>/<time>   # continue an interrupted run
torchrun --nproc-per-node=4 train.py ...           # several processes, one per CUDA device
"""

import os
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sdnet import config as configs
from sdnet.command import run_command
from sdnet.run import RunFolder
from sdnet.training import distributed


def show(config: dict[str, Any]) -> None:
    """Prints what would be trained."""
    from sdnet import build
    from sdnet.analysis.plan import show_plan
    from sdnet.training import console

    build.build_device(config)
    data = build.build_data(config)
    build.check_batches(config, len(data.train), distributed.environment()[1])
    model = build.build_model(config, len(data.classes), data.image_shape[0])
    build.check_optimization(config, model)
    show_plan(console.set_up(), config, data, model)


def train(config: dict[str, Any], folder: Path, in_sweep: bool) -> float | None:
    """Trains in a new or a resumed run folder; returns the lowest validation error in percent."""
    from sdnet.training import console as consoles
    from sdnet.training import session
    from sdnet.training.trainer import Interrupted

    console = consoles.set_up()
    run = RunFolder(config["resume"] or folder)
    with distributed.joined(config["trainer"]["device"]) as world:
        try:
            return session.work(config, run, world, console, in_sweep)
        except Interrupted as error:
            if world.is_main:
                print(f"{error}; to continue: {session.command(f'resume={run.path}')}")
            session.hand_over(error)
            raise KeyboardInterrupt from error
        except configs.RunError as error:
            if not in_sweep:
                raise
            ended = type(error)(str(error))
        raise ended  # without its traceback: its frames hold the network, and Hydra keeps the error


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    folder = Path(os.path.relpath(hydra_config.runtime.output_dir))
    try:
        config = configs.resolve(cfg)
        if config["resume"] is not None:
            config = configs.resumed(config, hydra_config.overrides.task)
        if config["show"]:
            return show(config) if distributed.is_main() else None
        return train(config, folder, hydra_config.mode == RunMode.MULTIRUN)
    except configs.ConfigError:
        configs.remove_empty(folder)
        raise


if __name__ == "__main__":
    run_command(main)
