"""What would end a run in its midst, tried before it begins."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sdnet import rng
from sdnet.config.errors import ConfigError, one_line
from sdnet.data.batches import part_sizes
from sdnet.launch.own_network import copied
from sdnet.models.gates import gated_modules, granularity_of, set_gates, subset_size
from sdnet.models.layout import Layout
from sdnet.training.optim import factor_of


def check_optimizer(config: dict[str, Any], make: Callable, device: torch.device | str) -> None:
    """Takes two steps with an optimizer as the trainer does: without a closure, dense gradients.

    Args:
        make: the optimizer of a list of parameters.
    """
    target = config["optimizer"]["_target_"]
    parameter = nn.Parameter(torch.zeros(2, 2, device=device))
    with rng.torch_seeded(config["seed"], "trial"):
        optimizer = make([parameter])
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"optimizer._target_ must make a torch.optim.Optimizer, got "
                f"{type(optimizer).__name__}"
            )
        try:
            for _ in range(2):  # some settings matter from the second step on
                parameter.grad = torch.zeros_like(parameter)
                with torch.no_grad():
                    inspect.unwrap(type(optimizer).step)(optimizer)
        except Exception as error:
            raise ConfigError(
                f"optimizer._target_={target} cannot make a step here: {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error


def check_rates(config: dict[str, Any], lr_schedule: Any) -> None:
    """Asks a learning-rate schedule for its first and its last factor."""
    epochs = config["trainer"]["epochs"]
    if not callable(lr_schedule):
        raise ConfigError(
            f"lr_schedule._target_ must make a callable lr_schedule(epoch, epochs), got "
            f"{type(lr_schedule).__name__}"
        )
    for epoch in (0.0, epochs * (1 - 1e-9)):
        try:
            factor_of(lr_schedule, epoch, epochs)
        except Exception as error:
            found = one_line(error)
            if not found.startswith("lr_schedule "):
                found = f"called with {epoch:g}, {epochs} it fails: {type(error).__name__}: {found}"
                found = f"lr_schedule: {found}"
            raise ConfigError(found) from error


@contextmanager
def quick_optimizers():
    """Within the block an optimizer is made a second faster.

    torch has decorated this method so that its first call imports torch's compiler; without the
    decorator it does the same.
    """
    decorated = Optimizer.add_param_group
    Optimizer.add_param_group = inspect.unwrap(decorated)
    try:
        yield
    finally:
        Optimizer.add_param_group = decorated


def check_least_rows(
    config: dict[str, Any],
    model: nn.Module,
    schedule: Callable,
    image_shape: Sequence[int],
    images: int,
    processes: int,
) -> None:
    """Computes the smallest part of an epoch's mini-batches where that is a single image or row.

    BatchNorm cannot train on one value per channel, which is what a map of 1x1 then leaves it.
    """
    settings = config["trainer"]
    size, accumulate = settings["batch_size"], settings["accumulate"]
    steps = {min(size, images), images % size or size}
    n = min(n for step in steps for p in part_sizes(step, size, accumulate, processes) for n in p)
    layout = Layout(model)
    ends = [layout.survival(schedule, progress) for progress in (0.0, 1.0)]
    subset = granularity_of(model) == "subset"
    open_rows = [subset_size(n, min(p)) if subset else n for p in zip(*ends, strict=True)]
    if min(open_rows) > 1:
        return
    model = copied(model).train()
    x = torch.zeros(n, *image_shape, device=next(model.parameters()).device)
    if granularity_of(model) == "batch":
        gates = torch.ones(len(gated_modules(model)), dtype=torch.bool)
    else:
        gates = torch.arange(n) < torch.tensor(open_rows)[:, None]
    set_gates(model, gates)
    try:
        with rng.torch_seeded(config["seed"], "trial"), torch.no_grad():
            model(x)
    except ValueError as error:
        if "more than 1 value per channel" not in one_line(error):
            raise
        what = f"leaves {n} of {images} training images for the smallest part of a step"
        if n > 1:
            what += ", of which a branch under subset gates gets one"
        raise ConfigError(
            f"trainer.batch_size={size} {what}: too few for BatchNorm where maps are 1x1; choose "
            f"another size"
        ) from error


def check_graphs(model, schedule) -> None:
    """Finds what CUDA graphs cannot record."""
    from sdnet.models.fast.graphs import recordable

    if not recordable(model):
        raise ConfigError(
            f"trainer.graphs must be false for {type(model).__name__} with granularity "
            f"{granularity_of(model)}: it is for sdnet's ResNets with granularity batch, got true"
        )
    survival = Layout(model).survival
    changes = survival(schedule, 0.0) != survival(schedule, 1.0)
    if changes and any(block.rescale == "train" for block in model.blocks):
        raise ConfigError(
            "trainer.graphs must be false with rescale=train and a schedule that changes during "
            "training: the factor on a branch is part of a recording, got true"
        )
