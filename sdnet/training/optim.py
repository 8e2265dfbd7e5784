"""Learning-rate schedules, and what an optimizer does to the parameters of a skipped block.

A learning-rate schedule is a callable `schedule(epoch, epochs) -> factor` on the optimizer's rate,
where `epoch` is the training done so far as a fraction of epochs, e.g. 2.5 in the middle of the
third. It has no state, so a resumed run needs none. A schedule of your own is one such class and
one file in `conf/lr_schedule/`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sdnet.models.checks import number, whole
from sdnet.models.classifier import classifier_names


class ConstantRate:
    """The full rate throughout, after `warmup_epochs` at `warmup_factor` times the rate."""

    def __init__(self, warmup_epochs: int = 0, warmup_factor: float = 0.1):
        epochs, factor = whole(warmup_epochs), number(warmup_factor)
        if epochs is None or epochs < 0:
            raise ValueError(f"warmup_epochs must be whole, 0 or more, got {warmup_epochs!r}")
        if factor is None or not 0.0 < factor <= 1.0:
            raise ValueError(f"warmup_factor must be above 0, at most 1, got {warmup_factor!r}")
        self.warmup_epochs = epochs
        self.warmup_factor = factor

    def __call__(self, epoch: float, epochs: int) -> float:
        if epoch < self.warmup_epochs:
            return self.warmup_factor
        return self.factor(epoch, epochs)

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor once the warm-up is over."""
        return 1.0


class MultiStep(ConstantRate):
    """Multiplied by `gamma` at each milestone.

    Epoch e, counted from 0, has the lower rate when e >= milestone * epochs; milestones are
    fractions of the training, 0 < m < 1. The paper: [0.5, 0.75].
    """

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, **warmup):
        super().__init__(**warmup)
        listed = isinstance(milestones, list | tuple)
        fractions = [number(m) for m in milestones] if listed else [None]
        if not all(m is not None and 0.0 < m < 1.0 for m in fractions):
            raise ValueError(f"milestones must be a list of fractions 0 < m < 1, got {milestones}")
        self.gamma = number(gamma)
        if self.gamma is None or not 0.0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be a number above 0, got {gamma!r}")
        self.milestones = tuple(fractions)

    def factor(self, epoch: float, epochs: int) -> float:
        # 0.55 * 100 is 55.00000000000001 in floating point, 0.6666667 * 90 is 60.000003
        passed = sum(math.floor(epoch) >= m * epochs - 1e-3 for m in self.milestones)
        return self.gamma**passed


class Cosine(ConstantRate):
    """Half a cosine from the full rate after the warm-up to zero at the end."""

    def factor(self, epoch: float, epochs: int) -> float:
        done = (epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1)
        return 0.5 * (1.0 + math.cos(math.pi * done))


def parameters_of(
    model: nn.Module, lr: float, backbone_factor: float = 1.0
) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
    """A network's parameters for an optimizer: with a factor, those of the classifier in a group
    of their own, at the full rate.

    Raises:
        ValueError: a factor for a network whose classifier cannot be found.
    """
    if backbone_factor == 1.0:
        return model.parameters()
    names = set(classifier_names(model))
    if not names:
        raise ValueError(
            f"backbone_factor must be 1 for {type(model).__name__}, of which no layer is known to "
            f"be the classifier, got {backbone_factor}"
        )
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name in names].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "lr": lr * backbone_factor}]


def factor_of(lr_schedule: Callable[[float, int], float], epoch: float, epochs: int) -> float:
    """What a learning-rate schedule gives, as one of Python's floats.

    Raises:
        ValueError: that is not a finite number of at least 0.
    """
    given = lr_schedule(epoch, epochs)
    factor = number(given)
    if factor is None or not 0.0 <= factor < math.inf:
        raise ValueError(
            f"lr_schedule must give a factor, 0 or more, got {given!r} at epoch {epoch:g} of "
            f"{epochs}"
        )
    return factor


def set_rate(optimizer: Optimizer, factor: float) -> float:
    """Sets every group's rate to `factor` times its initial one; returns that of the first."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return optimizer.param_groups[0]["lr"]


def zero_skipped(optimizer: Optimizer) -> None:
    """Gives a zero gradient, after the backward pass, to each parameter that got none.

    So weight decay and momentum act on a skipped block, as in the paper's code. Without it the
    optimizer passes the block over. The gradients must have been None before the pass.
    """
    given = (parameter for group in optimizer.param_groups for parameter in group["params"])
    skipped = [parameter for parameter in given if parameter.grad is None]
    for parameter in skipped:
        parameter.grad = torch.empty_like(parameter)
    if skipped:  # all at once: on CUDA a launch for each would cost as much as some blocks
        torch._foreach_zero_([parameter.grad for parameter in skipped])
