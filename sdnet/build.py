"""From a checked configuration to the objects of a run."""

from typing import Any

from sdnet import config as configs
from sdnet import device as devices
from sdnet import rng


def build_data(config: dict[str, Any]):
    """The data of a run, `sdnet.data.splits.Data`."""
    from sdnet.data.splits import prepare

    dataset = config["dataset"]
    source = configs.instantiate(config, "dataset")
    with configs.errors_of(config, "dataset"):
        return prepare(source, dataset["validation"], dataset["normalization"], config["seed"])


def build_model(config: dict[str, Any], num_classes: int, in_channels: int):
    """The network with its schedule, initialised by the seed, on torch's default device."""
    schedule = configs.instantiate(config, "schedule")
    with rng.torch_seeded(config["seed"], "init"):
        return configs.instantiate(
            config, "model", schedule=schedule, num_classes=num_classes, in_channels=in_channels
        )


def build_device(config: dict[str, Any]):
    """The device, with torch's global switches set for this run."""
    settings = config["trainer"]
    with configs.errors_of(config, "trainer"):
        device = devices.resolve(settings["device"])
        devices.configure(
            device, settings["precision"], settings["threads"], settings["deterministic"]
        )
    return device


def build_wandb_mode(config: dict[str, Any]) -> str:
    """online, offline or disabled: what `wandb.mode` comes to on this machine."""
    from sdnet import tracking

    with configs.errors_of(config, "wandb"):
        return tracking.resolve_mode(config["wandb"]["mode"])


def build_optimization(config: dict[str, Any], model):
    """The optimizer of the model's parameters, and the learning-rate schedule."""
    optimizer = configs.instantiate(config, "optimizer", model.parameters())
    return optimizer, configs.instantiate(config, "lr_schedule")


def build_trainer(config: dict[str, Any], run):
    """A trainer; the model's memory format comes before the optimizer, and that before a state."""
    import torch

    from sdnet.data.loader import Loader
    from sdnet.training.trainer import Trainer

    device = build_device(config)
    data = build_data(config)
    model = build_model(config, len(data.classes), data.image_shape[0])
    settings = config["trainer"]
    memory_format = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    optimizer, lr_schedule = build_optimization(config, model)
    common = (data.normalization, settings["batch_size"], device)
    layout = {"channels_last": settings["channels_last"]}
    augmentation = {k: config["dataset"][k] for k in ("shift", "flip")}
    loaders = {
        "train": Loader(data.train, *common, seed=config["seed"], **augmentation, **layout),
        "test": Loader(data.test, *common, **layout),
    }
    if data.validation is not None:
        loaders["validation"] = Loader(data.validation, *common, **layout)
    return Trainer(model, optimizer, lr_schedule, loaders, config, run)
