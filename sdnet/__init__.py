"""Residual networks with stochastic depth (Huang et al., ECCV 2016)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdnet.launch.load import load_run
    from sdnet.models.blocks import BasicBlock, Bottleneck
    from sdnet.models.gates import GateSampler, set_gates, set_survival
    from sdnet.models.resnet import ResNet, make_stage, resnet_cifar, resnet_imagenet, tiny_resnet
    from sdnet.models.schedules import Constant, LinearDecay, Uniform, linear_drop_rates
    from sdnet.models.stochastic_depth import DropPath, StochasticDepth, stochastic_depth
    from sdnet.models.surgery import add_stochastic_depth, restore_branches, skip_branches

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "Constant",
    "DropPath",
    "GateSampler",
    "LinearDecay",
    "ResNet",
    "StochasticDepth",
    "Uniform",
    "add_stochastic_depth",
    "linear_drop_rates",
    "load_run",
    "make_stage",
    "resnet_cifar",
    "resnet_imagenet",
    "restore_branches",
    "set_gates",
    "set_survival",
    "skip_branches",
    "stochastic_depth",
    "tiny_resnet",
]
_HOMES = {
    "launch.load": ("load_run",),
    "models.blocks": ("BasicBlock", "Bottleneck"),
    "models.gates": ("GateSampler", "set_gates", "set_survival"),
    "models.resnet": ("ResNet", "make_stage", "resnet_cifar", "resnet_imagenet", "tiny_resnet"),
    "models.schedules": ("Constant", "LinearDecay", "Uniform", "linear_drop_rates"),
    "models.stochastic_depth": ("DropPath", "StochasticDepth", "stochastic_depth"),
    "models.surgery": ("add_stochastic_depth", "restore_branches", "skip_branches"),
}


def __getattr__(name: str) -> Any:
    """What is asked for, imported only then: `python -m sdnet` begins before torch is there."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"sdnet.{module}"), name)
    raise AttributeError(f"module 'sdnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
