"""Recorded steps against those of the network itself, with recordings that compute anew.

A recording on a device does again what it did, in the memory in which it did it. `Anew` stands in
for it on the CPU: it calls the work again and puts the results where those of the first call lie.
"""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from sdnet import LinearDecay, resnet_cifar
from sdnet.models.fast import graphs
from sdnet.models.gates import set_gates
from sdnet.training import device as devices
from sdnet.training.optim import zero_skipped

NETWORKS = {
    "basic": {},
    "pre": {"order": "pre"},
    "projection": {"shortcut": "projection"},
    "silu, inverted": {"activation": "silu", "rescale": "train"},
    "bottleneck": {"block": "bottleneck", "depth": 29},
}
ROWS = 8


class Anew:
    """A `Recording` on the CPU. Those of a network have a pool, and are called once before."""

    def __init__(self, work, pool=None):
        self.work, self.result = work, None
        if pool:
            self.result = work()

    @torch.enable_grad()
    def play(self):
        found = self.work()
        if self.result is not None:
            for lies, made in zip(tree_leaves(self.result), tree_leaves(found), strict=True):
                if isinstance(lies, torch.Tensor):
                    lies.data.copy_(made)


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(graphs, "Recording", Anew)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(graphs.Recorded, "_warm_up", lambda self, images: None)


def network(device="cpu", **options):
    torch.manual_seed(0)
    model = resnet_cifar(**{"depth": 20, "schedule": LinearDecay(0.5), **options})
    devices.count_on_cpu(model.to(device, memory_format=torch.channels_last))
    return model


def both(model, steps, decay=True, lr=0.1):
    """The state of two copies of a network after the same steps: its own, and recorded ones."""
    other = copy.deepcopy(model)
    device = next(model.parameters()).device
    how = {"lr": lr, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    optimizers = [torch.optim.SGD(m.parameters(), **how) for m in (model, other)]
    recorded = graphs.Recorded(other, optimizers[1], ROWS, zero_skipped=decay)
    updates = optimizers[0], recorded
    calls = model, recorded
    random = torch.Generator().manual_seed(1)
    played = 0
    for step in range(steps):
        rows = ROWS if step % 4 else ROWS - 3  # an epoch's last mini-batch is smaller
        images = torch.randn(rows, 3, 16, 16, generator=random).to(device)
        labels = torch.randint(0, 10, (rows,), generator=random).to(device)
        gates = torch.rand(len(model.blocks), generator=random) < 0.5
        for optimizer, update, call in zip(optimizers, updates, calls, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr if step < 8 else lr / 10
            set_gates(getattr(call, "model", call), gates)
            optimizer.zero_grad(set_to_none=True)
            images = images.to(memory_format=torch.channels_last)
            F.cross_entropy(call(images).float(), labels).backward()
            if decay:
                zero_skipped(optimizer)
            update.step()
        played += recorded.played
    assert played == steps - steps // 4
    assert (recorded.update is not None) == decay
    momentum = [
        {i: s["momentum_buffer"] for i, s in o.state_dict()["state"].items()} for o in optimizers
    ]
    return (model.state_dict(), momentum[0]), (other.state_dict(), momentum[1])


def assert_equal(one, other):
    for some, others in zip(one, other, strict=True):
        assert some.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in some.items())


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("decay", [True, False])
def test_recorded_steps_compute_the_same(on_the_cpu, options, decay):
    model = network(**options)
    with mock.patch.object(nn.BatchNorm2d, "forward", counted_apart(nn.BatchNorm2d.forward)):
        assert_equal(*both(model, 12, decay))


def counted_apart(forward):
    """Played on a device BatchNorm counts nothing, and `Anew` plays what is in the network."""

    def run(self, x):
        count, inside = self.num_batches_tracked, torch.is_grad_enabled() and played_anew()
        self.num_batches_tracked = None if inside else count
        try:
            return forward(self, x)
        finally:
            self.num_batches_tracked = count

    return run


def played_anew():
    import sys

    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is Anew.play.__wrapped__.__code__:
            return True
        frame = frame.f_back
    return False


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_recorded_steps_compute_the_same_on_cuda(options):
    device = devices.resolve("cuda")
    devices.configure(device, "fp32", None, deterministic=True)
    try:
        assert_equal(*both(network(device, **options), 60))
    finally:
        devices.configure(device, "fp32", None, deterministic=False)


def test_what_cannot_be_recorded_is_known():
    assert graphs.recordable(network())
    assert not graphs.recordable(network(granularity="subset"))
