"""What the model tests share: a fixed seed, a binomial bound, and a residual block written again.

The reference below is independent of `sdnet.models.blocks`: plain functions of tensors, without
modules, in-place operations or gates. It takes its tensors from a `state_dict` by name.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def assert_rate():
    """Asserts that `kept` of `n` draws are within five standard deviations of `n * p`."""

    def check(kept, n, p):
        kept = torch.as_tensor(kept, dtype=torch.float64)
        p = torch.as_tensor(p, dtype=torch.float64)
        assert ((kept - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all(), (kept / n, p)

    return check


@pytest.fixture
def scrambled():
    """Gives a module double precision and random BatchNorm parameters and statistics."""

    def scramble(module):
        for m in module.double().modules():
            if isinstance(m, nn.BatchNorm2d):
                for tensor in (m.weight.data, m.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (m.bias.data, m.running_mean):
                    tensor.normal_(0, 0.5)
        return module

    return scramble


def _tensors(module):
    """The module's parameters (in the graph) and buffers by name; the buffers are copies."""
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
    return dict(module.named_parameters()) | buffers


def _batch_norm(t, name, x, training):
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
    scale = t[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) * scale.view(shape) + t[f"{name}.bias"].view(shape)


def _option_a(x, channels, stride, subsample=False):
    """The parameter-free shortcut, pixel by pixel."""
    n, c, height, width = x.shape
    out = x.new_zeros(n, channels, math.ceil(height / stride), math.ceil(width / stride))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            window = x[:, :, stride * i : stride * (i + 1), stride * j : stride * (j + 1)]
            out[:, :c, i, j] = window[:, :, 0, 0] if subsample else window.mean((2, 3))
    return out


def _block(t, x, kind, channels, stride, weight, training, order, activation, shortcut):
    act, kernels = ACTIVATIONS[activation], KERNELS[kind]
    h = x
    for i, kernel in enumerate(kernels, 1):
        s = stride if i == len(kernels) - 1 else 1  # conv1 of two, conv2 of three
        if order == "pre":
            h = act(_batch_norm(t, f"bn{i}", h, training))
        h = F.conv2d(h, t[f"conv{i}.weight"], stride=s, padding=kernel // 2)
        if order == "post":
            h = _batch_norm(t, f"bn{i}", h, training)
            h = act(h) if i < len(kernels) else h
    if stride == 1 and x.shape[1] == channels:
        skip = x
    elif shortcut == "projection":
        skip = F.conv2d(x, t["downsample.0.weight"], stride=stride)
        skip = _batch_norm(t, "downsample.1", skip, training) if order == "post" else skip
    else:
        skip = _option_a(x, channels, stride, shortcut == "subsample")
    return act(skip + weight * h) if order == "post" else skip + weight * h


@pytest.fixture
def option_a():
    return _option_a


@pytest.fixture
def reference_block():
    """`reference(block, x, kind, channels, stride, weight, training, order, activation, shortcut)`:
    the output of a block whose branch is weighted by `weight`, from the block's tensors alone."""
    return lambda block, *args: _block(_tensors(block), *args)


@pytest.fixture
def reference_cifar_net():
    """The logits of a CIFAR-stem network whose l-th branch is weighted by `weights[l]`."""

    def forward(net, x, kind, stage_blocks, channels, weights, training, order, *options):
        t = _tensors(net)
        x = F.conv2d(x, t["conv1.weight"], padding=1)
        if order == "post":
            x = ACTIVATIONS[options[0]](_batch_norm(t, "bn1", x, training))
        weights = iter(weights)
        for stage, (num_blocks, width) in enumerate(zip(stage_blocks, channels, strict=True), 1):
            for i in range(num_blocks):
                prefix = f"layer{stage}.{i}."
                own = {k.removeprefix(prefix): v for k, v in t.items() if k.startswith(prefix)}
                stride = 2 if i == 0 and stage > 1 else 1
                x = _block(own, x, kind, width, stride, next(weights), training, order, *options)
        if order == "pre":
            x = ACTIVATIONS[options[0]](_batch_norm(t, "bn_last", x, training))
        return x.mean((2, 3)) @ t["fc.weight"].T + t["fc.bias"]

    return forward
