"""Residual networks with stochastic depth (Huang et al., ECCV 2016)."""

from sdnet.models.blocks import BasicBlock, Bottleneck
from sdnet.models.gates import GateSampler, set_gates, set_survival
from sdnet.models.resnet import ResNet, make_stage, resnet_cifar, resnet_imagenet, tiny_resnet
from sdnet.models.schedules import Constant, LinearDecay, Uniform, linear_drop_rates
from sdnet.models.stochastic_depth import DropPath, StochasticDepth, stochastic_depth

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
    "linear_drop_rates",
    "make_stage",
    "resnet_cifar",
    "resnet_imagenet",
    "set_gates",
    "set_survival",
    "stochastic_depth",
    "tiny_resnet",
]
