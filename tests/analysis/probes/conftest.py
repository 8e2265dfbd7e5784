"""What the tests of probes share: subjects made of a network and a few images."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sdnet import LinearDecay
from sdnet.analysis.probes.subject import Subject
from sdnet.data.loader import Loader
from sdnet.data.split import Split
from sdnet.data.splits import Normalization
from sdnet.models.blocks import BasicBlock
from sdnet.models.gates import gated_modules
from sdnet.models.layout import Layout
from sdnet.models.macs import Macs
from sdnet.models.resnet import ResNet
from sdnet.runs.predictions import Predictions

NORMALIZATION = Normalization(np.float32([100]), np.float32([50]))


def split(count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Split(images, np.arange(count) % 5)


def network(block=BasicBlock, stage_blocks=(2, 3), **options):
    """Small, with statistics of BatchNorm unlike those of a new one."""
    torch.manual_seed(0)
    options = {"schedule": LinearDecay(0.5), "num_classes": 5} | options
    widths = [8 * (stage + 1) for stage in range(len(stage_blocks))]
    net = ResNet(block, stage_blocks, widths, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.5)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


def batches(part):
    return Loader(part, NORMALIZATION, 8)


@torch.no_grad()
def compute(model, part):
    assert not model.training
    logits = torch.cat([model(images) for images, _ in batches(part)])
    return Predictions.from_logits(logits, part.labels, "")


@pytest.fixture
def subject():
    """Makes one of a network; `compute` may be another function."""

    def make(model=None, validation=True, compute=compute, size=8):
        model = network() if model is None else model
        parts = {"train": split(20, 0), "validation": split(9, 1), "test": split(10, 2)}
        if not validation:
            del parts["validation"]
        survival = [gate.survival for gate in gated_modules(model)]
        macs = Macs(model, (3, size, size))
        return Subject("net", model, Layout(model), survival, macs, parts, compute, batches)

    return make


@pytest.fixture
def by_gates(subject):
    """A subject whose losses follow from which gates are closed, and nothing else."""

    def make(loss, **options):
        seen = []

        def compute(model, part):
            closed = tuple(i for i, g in enumerate(gated_modules(model)) if g.fixed == 0.0)
            seen.append((part, closed))
            logits = np.zeros((len(part), 5))
            # So that -log p of the true class is what was asked for.
            wrong = np.log(np.expm1(loss(closed)) / 4)
            logits[:] = wrong
            logits[np.arange(len(part)), part.labels] = 0.0
            return Predictions.from_logits(logits, part.labels, "")

        return subject(network(**options), compute=compute), seen

    return make


@pytest.fixture
def swapped_in():
    """A copy of a network with another module in the place of one."""

    def swap(model, path, module):
        copied = copy.deepcopy(model)
        parent, _, name = path.rpartition(".")
        setattr(copied.get_submodule(parent), name, module)
        return copied.eval()

    return swap
