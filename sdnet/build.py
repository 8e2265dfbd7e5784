"""From a checked configuration to the objects of a run."""

import inspect
from functools import partial
from typing import Any
from unittest.mock import patch

from sdnet import config as configs
from sdnet import device as devices
from sdnet import rng
from sdnet.training.distributed import ALONE, World


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
        model = configs.instantiate(
            config, "model", schedule=schedule, num_classes=num_classes, in_channels=in_channels
        )
    group = config["trainer"]["checkpoint_blocks"]
    if group is not None:
        if not hasattr(model, "checkpoint_blocks"):
            raise configs.ConfigError(
                f"trainer.checkpoint_blocks must be null for {type(model).__name__}, which cannot "
                f"do it, got {group}"
            )
        model.checkpoint_blocks = group
    if config["trainer"]["compile"] is not None:
        from sdnet.models.compile import compilable

        if not compilable(model):
            raise configs.ConfigError(
                f"trainer.compile must be null for {type(model).__name__}, whose blocks are not "
                f"sdnet's ResidualBlock, got {config['trainer']['compile']}"
            )
    return model


def build_device(config: dict[str, Any], world: World = ALONE):
    """The device of this process, with torch's global switches set for this run."""
    settings = config["trainer"]
    with configs.errors_of(config, "trainer"):
        device = devices.resolve(settings["device"], world.local_rank if world.size > 1 else None)
        devices.configure(
            device, settings["precision"], settings["threads"], settings["deterministic"]
        )
        if settings["sync_batchnorm"] and device.type != "cuda":
            raise ValueError("sync_batchnorm must be false without CUDA, got true")
        if settings["compile"] is not None:
            from sdnet.models.compile import check_compiler

            check_compiler(device)
    devices.fuse(device, settings["fused"], settings["channels_last"])
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


def check_optimization(config: dict[str, Any], model) -> None:
    """Finds the mistakes that `build_optimization` would find, a second faster."""
    from torch.optim import Optimizer

    # torch has decorated this method so that its first call imports torch's compiler; without the
    # decorator it does the same.
    undecorated = inspect.unwrap(Optimizer.add_param_group)
    with patch.object(Optimizer, "add_param_group", undecorated):
        build_optimization(config, model)


def build_trainer(config: dict[str, Any], run, world: World = ALONE):
    """A trainer; the model's memory format comes before the optimizer, and that before a state.

    Args:
        run: the run folder; None in a process that keeps none.
    """
    import torch

    from sdnet.training.trainer import Trainer

    settings = config["trainer"]
    device = build_device(config, world)
    with world.one_first():
        data = build_data(config)
    check_batches(config, len(data.train), world.size)
    model = build_model(config, len(data.classes), data.image_shape[0])
    if settings["sync_batchnorm"]:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    if settings["compile"] is not None:
        from sdnet.models.compile import compile_branches

        compile_branches(model)
    optimizer, lr_schedule = build_optimization(config, model)
    loaders = build_loaders(config, data, device, world)
    world.meet()  # a mistake that one of them finds is found before the run folder is made
    return Trainer(model, optimizer, lr_schedule, loaders, config, run, world)


def check_batches(config: dict[str, Any], images: int, processes: int) -> None:
    """Raises a ConfigError where a process or a part of a mini-batch would have too few images."""
    size, accumulate = config["trainer"]["batch_size"], config["trainer"]["accumulate"]
    least = 2 * accumulate * processes
    if size < least:
        raise configs.ConfigError(
            f"trainer.batch_size must be {least} or more for accumulate={accumulate} and "
            f"{processes} process(es), so that each part has two images, got {size}"
        )
    last = images % size or size
    if last < processes:
        raise configs.ConfigError(
            f"trainer.batch_size={size} leaves {last} of {images} training images for an epoch's "
            f"last step: too few for {processes} processes; choose another size"
        )


def build_loaders(config: dict[str, Any], data, device, world: World) -> dict[str, Any]:
    """The loaders of the parts: `train`, `test` and, where there is one, `validation`."""
    from sdnet.data.loader import Loader
    from sdnet.data.streaming import Files, StreamingLoader

    settings, dataset = config["trainer"], config["dataset"]
    streams = isinstance(data.train, Files)
    names = ("flip",) if streams else ("flip", "shift")
    augmentation = {"seed": config["seed"]} | {name: dataset[name] for name in names}
    common = {"channels_last": settings["channels_last"], "rank": world.rank, "ranks": world.size}
    if streams:
        common["workers"] = settings["workers"]
    make = partial(
        StreamingLoader if streams else Loader,
        normalization=data.normalization,
        batch_size=settings["batch_size"],
        device=device,
        **common,
    )
    loaders = {"train": make(data.train, **augmentation), "test": make(data.test)}
    if data.validation is not None:
        loaders["validation"] = make(data.validation)
    return loaders
