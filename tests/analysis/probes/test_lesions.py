import copy
import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, zero_one_loss
from torch import nn

from sdnet import LinearDecay, add_stochastic_depth, skip_branches
from sdnet.analysis.probes.lesions import lesion_sets, lesions, reorder
from sdnet.config.errors import ConfigError
from sdnet.models.blocks import Bottleneck
from sdnet.models.cutting.gate import Gate
from sdnet.models.gates import Gated, fixed_weights
from tests.analysis.probes.conftest import network
from tests.models.networks import WITH_DROP_PATH, WITHOUT


class Shortcut(nn.Module):
    """A block without its branch."""

    def __init__(self, block):
        super().__init__()
        self.downsample = block.downsample or nn.Identity()
        after = {"relu": F.relu, "silu": F.silu}[block.activation]
        self.after = after if block.order == "post" else nn.Identity()

    def forward(self, x):
        return self.after(self.downsample(x))


class Nothing(nn.Module):
    def forward(self, x, *more):
        return torch.zeros_like(x)


OWN = {
    "basic": {},
    "bottleneck, sample": {"block": Bottleneck, "granularity": "sample", "rescale": "train"},
    "pre, subset": {"order": "pre", "granularity": "subset"},
    "projection": {"shortcut": "projection", "rescale": "none"},
    "silu": {"activation": "silu", "shortcut": "subsample"},
}


@pytest.mark.parametrize("name", OWN)
def test_a_lesion_is_the_network_with_the_shortcut_in_the_blocks_place(subject, swapped_in, name):
    model, x = network(**OWN[name]), torch.randn(4, 3, 8, 8)
    found, state = subject(model), str(model.state_dict()._metadata)
    paths = [n for n, m in model.named_modules() if isinstance(m, Gated)]
    with torch.no_grad():
        whole = model(x)
        for gate, path in enumerate(paths):
            without = swapped_in(model, path, Shortcut(model.get_submodule(path)))
            with found.without([gate]):
                assert torch.equal(model(x), without(x))
            assert not torch.equal(whole, without(x))
        with found.without(range(len(paths))), pytest.raises(KeyError), found.without([0]):
            raise KeyError
        assert torch.equal(model(x), whole)
    assert str(model.state_dict()._metadata) == state


FOREIGN = {  # by their granularity
    "vit": "batch",
    "eva": "sample",
    "convnext": "subset",
    "resnet": "batch",
    "torchvision convnext": "sample",
    "torchvision resnet": "subset",
}


@pytest.mark.parametrize(("name", "granularity"), FOREIGN.items())
def test_so_it_is_in_networks_of_others(swapped_in, name, granularity):
    torch.manual_seed(0)
    make, size = (WITH_DROP_PATH | WITHOUT)[name]
    plain, x = make().double().eval(), torch.randn(2, 3, size, size).double()
    for parameter in plain.parameters():  # a layer scale is small at first
        parameter.data += 0.2 * (parameter.numel() == len(parameter))
    model = copy.deepcopy(plain)
    if name in WITH_DROP_PATH:
        skip_branches(model, granularity=granularity)
    else:
        add_stochastic_depth(model, LinearDecay(0.5), granularity=granularity)
    gates = {n: m for n, m in model.named_modules() if isinstance(m, Gate)}
    with torch.no_grad():
        for path, gate in gates.items():
            end = path if name in WITH_DROP_PATH else path.replace("branch_gate", "bn2")
            without = swapped_in(plain, end, Nothing())
            with fixed_weights({gate: 0.0}):
                torch.testing.assert_close(model(x), without(x), rtol=1e-10, atol=1e-10)
            assert not torch.allclose(plain(x), without(x), rtol=0, atol=1e-8)
        assert torch.equal(model(x), plain(x))


def test_the_table_of_lesions_by_hand(subject, swapped_in):
    found = subject()
    rows = lesions(found)
    model = found.model
    paths = [n for n, m in model.named_modules() if isinstance(m, Gated)]
    assert [row["gate"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["stage"] for row in rows] == [1, 1, 2, 2, 2]
    assert [row["survival"] for row in rows] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])

    @torch.no_grad()
    def by_sklearn(model, part):
        images, labels = zip(*found.batches(found.parts[part]), strict=True)
        logits, labels = model(torch.cat(images)), torch.cat(labels)
        loss = log_loss(labels, logits.double().softmax(1), labels=range(5))
        return 100 * zero_one_loss(labels, logits.argmax(1)), loss

    for part in ("validation", "test"):
        full = by_sklearn(model, part)
        for row, path in zip(rows, paths, strict=True):
            without = swapped_in(model, path, Shortcut(model.get_submodule(path)))
            for name, value, whole in zip(
                ("error", "loss"), by_sklearn(without, part), full, strict=True
            ):
                assert row[f"{part}_{name}"] == pytest.approx(value, rel=2e-3)
                assert row[f"{part}_{name}_increase"] == pytest.approx(value - whole, abs=5e-3)


def test_sets_of_lesions_are_different_ones_as_many_as_there_are(by_gates):
    found, seen = by_gates(lambda closed: 1.0 + len(closed))
    rows = lesion_sets(found, n=4, seed=0)
    assert Counter(row["k"] for row in rows) == {k: min(4, math.comb(5, k)) for k in range(6)}
    for row, (_, closed) in zip(rows, seen, strict=True):
        assert row["gates"] == " ".join(str(gate + 1) for gate in closed)
        assert row["k"] == len(set(closed)) and row["loss"] == pytest.approx(1 + row["k"], rel=1e-3)
    assert len({row["gates"] for row in rows}) == len(rows)
    assert lesion_sets(found, n=4, seed=0) == rows != lesion_sets(found, n=4, seed=1)


def test_reordered_blocks_are_those_of_a_stage_that_keep_the_shape(subject):
    model = network(stage_blocks=(3, 4))
    stages, orders = [list(model.layer1), list(model.layer2)], []

    def compute_and_note(model, part):
        orders.append(
            [
                [s.index(b) for b in now]
                for s, now in zip(stages, (model.layer1, model.layer2), strict=True)
            ]
        )
        return subject_of.compute(model, part)

    subject_of = subject(model)
    rows = reorder(subject(model, compute=compute_and_note), n=6, seed=0)
    assert [row["swaps"] for row in rows] == [0] + [k for k in range(1, 8) for _ in range(6)]
    assert [list(model.layer1), list(model.layer2)] == stages
    full = subject_of.scores("test")
    assert rows[0]["kendall_tau"] == 1.0 and rows[0]["loss"] == full["loss"]
    for row, (first, second) in zip(rows, orders, strict=True):
        assert sorted(first) == [0, 1, 2] and second[0] == 0 and sorted(second) == [0, 1, 2, 3]
        order = [*first, *(3 + place for place in second)]
        inversions = sum(a > b for a, b in itertools.combinations(order, 2))
        assert row["kendall_tau"] == pytest.approx(1 - 2 * inversions / math.comb(7, 2))
    assert len({str(order) for order in orders}) > 10
    assert len({row["loss"] for row in rows}) > 10  # it matters


def test_other_networks_are_not_reordered(subject):
    make, size = WITH_DROP_PATH["vit"]
    model = make().eval()
    skip_branches(model)
    with pytest.raises(ConfigError, match="sdnet's ResNets, got VisionTransformer"):
        reorder(subject(model, size=size), 1, 0)
    with pytest.raises(ConfigError, match="no two blocks of the same shape"):
        reorder(subject(network(stage_blocks=(1, 1))), 1, 0)
