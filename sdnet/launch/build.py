"""From a checked configuration to the objects of a run."""

import logging
from functools import partial
from typing import Any

from torch import nn

from sdnet import rng
from sdnet.config import targets
from sdnet.config.errors import ConfigError, errors_of, not_a_setting
from sdnet.launch import trial
from sdnet.models.gates import granularity_of
from sdnet.training import device as devices
from sdnet.training.distributed import ALONE, World
from sdnet.training.optim import parameters_of

log = logging.getLogger(__name__)


def build_data(config: dict[str, Any], listing: bool = False):
    """The data of a run, `sdnet.data.splits.Data`; with `listing` images are counted, not read."""
    from sdnet.data.split import LISTING

    before = LISTING.set(listing)
    try:
        return _build_data(config)
    finally:
        LISTING.reset(before)


def _build_data(config: dict[str, Any]):
    from sdnet.data.split import Source
    from sdnet.data.splits import prepare

    dataset = config["dataset"]
    source = targets.instantiate(config, "dataset")
    if not isinstance(source, Source):
        raise ConfigError(
            f"dataset._target_ must be a function that returns a sdnet.data.split.Source, got "
            f"{type(source).__name__}"
        )
    with errors_of(config, "dataset"):
        data = prepare(source, dataset["validation"], dataset["normalization"], config["seed"])
    _check_augmentation(dataset, data.train)
    return data


def _check_augmentation(dataset: dict[str, Any], images) -> None:
    from sdnet.data.split import Files

    if "shift" in dataset and isinstance(images, Files):
        others = [name for name in dataset if name != "shift"]
        raise ConfigError(not_a_setting("dataset.shift", others))
    edge = min(images.shape[:2])
    if dataset.get("shift", 0) >= edge:
        raise ConfigError(
            f"dataset.shift must be less than the images' edge, {edge}, got {dataset['shift']}"
        )


def read_data(config: dict[str, Any], listed, world: World = ALONE):
    """The data of a run, of which `build_data` has made a listing; read now where only counted."""
    from dataclasses import replace

    from sdnet.data.split import is_counted
    from sdnet.data.splits import Normalization

    if listed.normalization is not None:
        return listed
    if is_counted(listed.train):
        with world.one_first():
            return build_data(config)
    fitted = Normalization.fit(listed.train, config["dataset"]["normalization"])
    return replace(listed, normalization=fitted)


def fingerprint(config: dict[str, Any]) -> str | None:
    """That of a configuration's data, as they are now; see `sdnet.data.split.Source`."""
    return build_data(config, listing=True).fingerprint


def build_schedule(config: dict[str, Any]):
    """The schedule of survival."""
    schedule = targets.instantiate(config, "schedule")
    if not callable(schedule):
        raise ConfigError(
            f"schedule._target_ must make a callable schedule(stage_blocks, progress), got "
            f"{type(schedule).__name__}"
        )
    return schedule


def build_model(config: dict[str, Any], num_classes: int, in_channels: int, schedule=None):
    """The network with its schedule, initialised by the seed, on torch's default device.

    Its target is called with these three as well: schedule=, num_classes= and in_channels=.
    """
    given = [n for n in ("schedule", "num_classes", "in_channels") if n in config["model"]]
    if given:
        raise ConfigError(
            f"model.{given[0]} follows from the schedule and the data set: leave it out, got "
            f"{config['model'][given[0]]!r}"
        )
    schedule = schedule or build_schedule(config)
    with rng.torch_seeded(config["seed"], "init"):
        model = targets.instantiate(
            config, "model", schedule=schedule, num_classes=num_classes, in_channels=in_channels
        )
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_ must make an nn.Module, got {type(model).__name__}")
    group = config["trainer"]["checkpoint_blocks"]
    if group is not None:
        if not hasattr(model, "checkpoint_blocks"):
            raise ConfigError(
                f"trainer.checkpoint_blocks must be null for {type(model).__name__}, which cannot "
                f"do it, got {group}"
            )
        model.checkpoint_blocks = group
    if config["trainer"]["compile"] is not None:
        from sdnet.models.compile import compilable

        if not compilable(model):
            raise ConfigError(
                f"trainer.compile must be null for {type(model).__name__}, whose blocks are not "
                f"sdnet's ResidualBlock, got {config['trainer']['compile']}"
            )
    _check_blocks(model, schedule)
    with errors_of(config, "model"):
        granularity_of(model)
    if config["trainer"].get("graphs"):  # a run of an earlier version has it not
        trial.check_graphs(model, schedule)
    return model


def _check_blocks(model, schedule) -> None:
    """Finds what the trainer would, of a network or a schedule of one's own."""
    from sdnet.models.gates import gated_modules
    from sdnet.models.layout import Layout

    if not gated_modules(model):
        raise ConfigError(
            f"model._target_ must make a network with blocks that can be skipped, subclasses of "
            f"sdnet.models.gates.Gated such as BasicBlock; {type(model).__name__} has none"
        )
    layout = Layout(model)
    for progress in (0.0, 0.5, 1.0):
        try:
            layout.survival(schedule, progress)
        except Exception as error:
            called = f"called with {layout.stage_blocks}, {progress} it fails"
            raise ConfigError(f"schedule: {called}: {error}") from error


def planned(model, schedule):
    """The network with the survival that its blocks have on average over the training."""
    from sdnet.models.gates import set_survival
    from sdnet.models.layout import Layout

    set_survival(model, Layout(model).mean_survival(schedule))
    return model


def build_device(config: dict[str, Any], world: World = ALONE):
    """The device of this process, with torch's global switches set for this run."""
    settings = config["trainer"]
    with errors_of(config, "trainer"):
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
    if world.size > 1:
        if settings["graphs"]:
            raise ConfigError("trainer.graphs must be false with several processes, got true")
        if config.get("telemetry") == "directions":
            raise ConfigError("telemetry must be true or false with several processes")
    if settings["graphs"] and device.type != "cuda":
        log.warning("trainer.graphs=true is without effect: it is for CUDA, not for %s", device)
    return device


def build_wandb_mode(config: dict[str, Any]) -> str:
    """online, offline or disabled: what `wandb.mode` comes to on this machine."""
    from sdnet.listeners import wandb as tracking

    with errors_of(config, "wandb"):
        return tracking.resolve_mode(config["wandb"]["mode"])


def build_optimization(config: dict[str, Any], model, device="cpu"):
    """The optimizer of the model's parameters, and the learning-rate schedule; both are tried.

    Args:
        device: on which the run will be computed.
    """
    make = partial(targets.instantiate, config, "optimizer")
    trial.check_optimizer(config, make, device)
    lr_schedule = targets.instantiate(config, "lr_schedule")
    trial.check_rates(config, lr_schedule)
    settings = config["optimizer"]
    with errors_of(config, "optimizer"):
        given = parameters_of(model, settings["lr"], settings.get("backbone_factor", 1.0))
    return make(given), lr_schedule


def check_optimization(config: dict[str, Any], model, device="cpu") -> None:
    """Finds the mistakes that `build_optimization` would find, a second faster."""
    with trial.quick_optimizers():
        build_optimization(config, model, device)


def build_trainer(config: dict[str, Any], run, world: World = ALONE):
    """A trainer; the model's memory format comes before the optimizer, and that before a state.

    Args:
        run: the run folder; None in a process that keeps none.
    """
    import torch

    from sdnet.launch.budget import budgeted, training_cost
    from sdnet.launch.own_network import try_network
    from sdnet.training.trainer import Trainer

    device = build_device(config, world)
    with world.one_first():
        data = build_data(config, listing=True)
    check_batches(config, len(data.train), world.size)
    schedule = build_schedule(config)
    model = build_model(config, len(data.classes), data.image_shape[0], schedule)
    shape, images = data.image_shape, len(data.train)
    cost = training_cost(config, model, schedule, shape)
    config = budgeted(config, cost, images)
    settings = config["trainer"]
    if granularity_of(model) == "subset":  # blocks have a batch size each: hundreds of searches
        torch.backends.cudnn.benchmark = False
    trial.check_least_rows(config, model, schedule, shape, images, world.size)
    if settings["sync_batchnorm"]:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    if settings["compile"] is None:  # whose graphs count themselves
        devices.count_on_cpu(model)
    try_network(model, data.image_shape, len(data.classes))
    if settings["compile"] is not None:
        from sdnet.models.compile import compile_branches

        compile_branches(model)
    optimizer, lr_schedule = build_optimization(config, model, device)
    data = read_data(config, data, world)  # nothing is decoded before all is checked
    loaders = build_loaders(config, data, device, world)
    world.meet()  # a mistake that one of them finds is found before the run folder is made
    trainer = Trainer(model, schedule, optimizer, lr_schedule, loaders, config, run, world)
    if settings["graphs"] and device.type == "cuda":
        from sdnet.models.fast.graphs import Recorded

        zero_skipped = config["optimizer"]["skipped_update"] == "decay"
        rows = settings["batch_size"]
        trainer.recorded = Recorded(model, optimizer, rows, zero_skipped)
    evaluated = {"validation": data.validation, "test": data.test}
    trainer.orders = {p: images.order() for p, images in evaluated.items() if images is not None}
    trainer.classes = data.classes
    if cost is not None:
        length = (settings["epochs"], images, settings["batch_size"])
        trainer.macs = {"macs": cost.macs, "training_macs": cost.training_macs(*length)}
    trainer.facts = {"classes": len(data.classes), "image_shape": [*map(int, data.image_shape)]}
    if data.fingerprint is not None:  # they may be exchanged
        trainer.facts["data"] = data.fingerprint
    return trainer


def check_batches(config: dict[str, Any], images: int, processes: int) -> None:
    """Raises a ConfigError where a process or a part of a mini-batch would have too few images."""
    size, accumulate = config["trainer"]["batch_size"], config["trainer"]["accumulate"]
    least = 2 * accumulate * processes
    if size < least:
        raise ConfigError(
            f"trainer.batch_size must be {least} or more for accumulate={accumulate} and "
            f"{processes} process(es), so that each part has two images, got {size}"
        )
    last = images % size or size
    if last < processes:
        raise ConfigError(
            f"trainer.batch_size={size} leaves {last} of {images} training images for an epoch's "
            f"last step: too few for {processes} processes; choose another size"
        )


def build_loaders(config: dict[str, Any], data, device, world: World) -> dict[str, Any]:
    """The loaders of the parts: `train`, `test` and, where there is one, `validation`."""
    from sdnet.data.split import Files

    dataset = config["dataset"]
    augmentation = {"seed": config["seed"], "flip": dataset.get("flip", False)}
    if not isinstance(data.train, Files):
        augmentation["shift"] = dataset.get("shift", 0)
    augmentation["batch_size"] = config["trainer"]["batch_size"]
    make = partial(build_loader, config, data.normalization, device, world)
    loaders = {"train": make(data.train, **augmentation), "test": make(data.test)}
    if data.validation is not None:
        loaders["validation"] = make(data.validation)
    return loaders


def build_loader(config: dict[str, Any], normalization, device, world: World, part, **more):
    """The loader of one part: as it is evaluated, but for `more`."""
    from sdnet.data.loader import Loader
    from sdnet.data.split import Files
    from sdnet.data.streaming import StreamingLoader

    settings, make = config["trainer"], Loader
    more = {"batch_size": eval_batch_size(settings, part, device)} | more
    more |= {"channels_last": settings["channels_last"], "rank": world.rank, "ranks": world.size}
    if isinstance(part, Files):
        make, more["workers"] = StreamingLoader, settings["workers"]
    return make(part, normalization=normalization, device=device, **more)


def eval_batch_size(settings: dict[str, Any], images, device) -> int:
    """Images per batch of an evaluation, over all processes."""
    from sdnet.data.split import Files

    size, wanted = settings["batch_size"], settings["eval_batch_size"]
    if wanted is not None or device.type != "cuda" or isinstance(images, Files):
        return wanted or size
    # To start a small batch on CUDA takes longer than to compute it. The memory is bounded.
    height, width = images.shape[:2]
    return max(size, min(1024, 1024 * 32 * 32 // (height * width)))
