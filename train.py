"""Trains a residual network with stochastic depth as the composed configuration says.

python train.py schedule.p_L=0.8 seed=1            # see conf/ for every setting
python train.py show=true                          # what would be run
python train.py resume=outputs/<run name>/<time>   # continue an interrupted run
"""

import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sdnet import config as configs
from sdnet import rng
from sdnet.run import RunFolder

configs.register_resolvers()


def build(config: dict):
    """The data and the network, on the CPU, of a checked configuration."""
    from sdnet.data.splits import prepare

    dataset = config["dataset"]
    schedule = configs.instantiate(config, "schedule")
    source = configs.instantiate(config, "dataset")
    with configs.errors_of(config, "dataset"):
        data = prepare(source, dataset["validation"], dataset["normalization"], config["seed"])
    with rng.torch_seeded(config["seed"], "init"):
        model = configs.instantiate(
            config,
            "model",
            schedule=schedule,
            num_classes=len(data.classes),
            in_channels=data.image_shape[0],
        )
    return data, model


def build_trainer(config: dict, data, model, device, run):
    """A trainer; the model's memory format comes before the optimizer, and that before a state."""
    import torch

    from sdnet.data.loader import Loader
    from sdnet.training.trainer import Trainer

    settings = config["trainer"]
    memory_format = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    optimizer = configs.instantiate(config, "optimizer", model.parameters())
    common = (data.normalization, settings["batch_size"], device)
    layout = {"channels_last": settings["channels_last"]}
    augmentation = {k: config["dataset"][k] for k in ("shift", "flip")}
    loaders = {
        "train": Loader(data.train, *common, seed=config["seed"], **augmentation, **layout),
        "test": Loader(data.test, *common, **layout),
    }
    if data.validation is not None:
        loaders["validation"] = Loader(data.validation, *common, **layout)
    lr_schedule = configs.instantiate(config, "lr_schedule")
    return Trainer(model, optimizer, lr_schedule, loaders, config, run)


def run_one(config: dict, folder: Path) -> None:
    """Trains, or with `show` prints what would be trained, in a new or a resumed run folder."""
    from sdnet import device as devices
    from sdnet import tracking
    from sdnet.training import console as consoles
    from sdnet.training import session
    from sdnet.training.trainer import Diverged, Interrupted

    console = consoles.set_up()
    settings = config["trainer"]
    if config["resume"] is not None and session.is_completed(config):
        return
    with configs.errors_of(config, "trainer"):
        device = devices.resolve(settings["device"])
        devices.configure(
            device, settings["precision"], settings["threads"], settings["deterministic"]
        )
    data, model = build(config)
    if config["show"]:
        from sdnet.analysis.plan import show_plan

        show_plan(console, config, data, model)
        return
    with configs.errors_of(config, "wandb"):
        wandb_mode = tracking.resolve_mode(config["wandb"]["mode"])
    run = RunFolder(config["resume"] or folder)
    trainer = build_trainer(config, data, model, device, run)  # the last that can be refused
    try:
        session.begin(run, config, device)
        trainer.resume()
        session.train(trainer, run, config, wandb_mode, console)
    except (FileExistsError, Diverged) as error:
        raise configs.RunError(f"{run.path}: {error}") from error
    except Interrupted as error:
        print(f"{error}; to continue: python train.py resume={run.path}")
        raise KeyboardInterrupt from error


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config = configs.resolve(cfg)
        if config["resume"] is not None:
            config = configs.resumed(config, hydra_config.overrides.task)
        run_one(config, Path(os.path.relpath(folder)))
    except configs.ConfigError:
        configs.remove_empty(folder)
        raise


if __name__ == "__main__":
    configs.run_command(main)
