"""Multiply-adds against torch's own count of what is computed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdnet import GateSampler, LinearDecay, add_stochastic_depth, set_gates, skip_branches
from sdnet.models.gates import gated_modules
from sdnet.models.macs import Macs
from tests.models.networks import WITH_DROP_PATH, WITHOUT

COUNTED = ("convolution", "mm", "addmm")  # not the products of queries, keys and values


def computed(net, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if op.__name__ in COUNTED) // 2


@pytest.mark.parametrize(
    "name", ["vit", "convnext", "torchvision swin", "torchvision vit", "torchvision regnet"]
)
def test_they_are_what_torch_counts_and_what_a_closed_gate_saves(name):
    make, size = (WITH_DROP_PATH | WITHOUT)[name]
    net, x = make().train(), torch.randn(1, 3, size, size)
    if name in WITH_DROP_PATH:
        skip_branches(net)
    else:
        add_stochastic_depth(net, LinearDecay(0.5))
    for module in net.modules():  # one image has one value per channel
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    macs = Macs(net, (3, size, size))
    opened = torch.ones(len(gated_modules(net)), dtype=torch.bool)
    set_gates(net, opened)
    assert computed(net, x) == macs.total
    gates = GateSampler(net, seed=1).draw(0, 1)
    assert 0 < gates.sum() < len(gates)
    set_gates(net, gates)
    saved = [n for n, _ in macs.of_gates().values()]
    left = sum(n for n, is_open in zip(saved, gates.tolist(), strict=True) if not is_open)
    assert computed(net, x) == macs.total - left
