"""Blocks and modules out of the ordinary that are cut out all the same."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdnet import (
    DropPath,
    LinearDecay,
    StochasticDepth,
    Uniform,
    restore_branches,
    set_gates,
    skip_branches,
)
from sdnet.models.gates import gated_modules, set_survival
from tests.models.drop_blocks import Alone, Block


class Own(nn.Module):
    """A drop-path module of one's own."""

    def __init__(self, chance):
        super().__init__()
        self.chance = chance

    def forward(self, x):
        return x


def test_drop_types_of_ones_own():
    net = nn.Sequential(Block(), Block())
    net[0].drop = Own(0.25)
    with pytest.raises(ValueError, match=r"0\.drop: Own has no attribute drop_prob or p or drop_r"):
        skip_branches(net, drop_types=[Own])
    rows = skip_branches(net, drop_types={Own: "chance"})
    assert [(row.module, row.survival) for row in rows] == [("0.drop", 0.75), ("1.drop", 0.5)]
    net[0].drop.survival = 1.0
    restore_branches(net)
    assert isinstance(net[0].drop, Own) and net[0].drop.chance == 0.25


class Tail(nn.Module):
    """The drop-path module ends a branch that is a module of its own."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), StochasticDepth(0.5))
        self.more = nn.ModuleList([Alone(), nn.Sequential(nn.Sequential(Alone()))])

    def forward(self, x):
        x = x + self.branch(x)
        for branch in self.more:
            x = branch(x) + x
        return x


@pytest.mark.parametrize(
    "copied", [lambda net: net, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))]
)
def test_a_branch_may_end_in_a_module_whose_sum_is_above(copied):
    net = nn.Sequential(Tail()).double()
    x = torch.randn(3, 4).double()
    expected = copy.deepcopy(net).eval()(x)
    rows = skip_branches(net, rescale="none")
    assert [row.module for row in rows] == ["0.branch.2", "0.more.0.drop", "0.more.1.0.0.drop"]
    net = copied(net)
    assert torch.equal(net.eval()(x), expected)
    set_gates(net.train(), [True] * 3)
    assert torch.equal(net(x), expected)
    set_gates(net, [False] * 3)
    assert torch.equal(net(x), x)
    set_gates(net, [False, True, False])
    assert torch.equal(net(x), x + net[0].more[0].f(x))
    assert restore_branches(net) == 3
    assert torch.equal(net.eval()(x), expected)


class WithArguments(Block):
    def forward(self, x, scale=None, shift=0.0, *, twice=False):
        y = self.f(x)
        if scale is not None:
            y = y * scale
        return x + self.drop(y + shift)


class ByName(Block):
    def forward(self, x, *, by, shift=0.0):
        return x + self.drop(self.f(x) * by + shift)


def test_an_argument_that_must_be_named_is_handed_on():
    x, by = torch.randn(3, 4), torch.randn(4)
    block = ByName()
    expected = copy.deepcopy(block).eval()(x, by=by, shift=1.0)
    skip_branches(nn.Sequential(block), rescale="none")
    set_gates(block, [True])
    assert torch.equal(block(x, shift=1.0, by=by), expected)


class HandsOn(Block):
    def forward(self, x, bias=None):
        return x + self.drop(F.linear(self.f(x), self.f.weight, bias))


def test_arguments_with_a_default_are_handed_on_or_refused():
    x, bias = torch.randn(3, 4), torch.randn(4)
    for block, given in ((HandsOn(), {"bias": bias}), (HandsOn(), {})):
        net = nn.Sequential(block)
        expected = copy.deepcopy(block).eval()(x, **given)
        skip_branches(net, rescale="none")
        set_gates(net, [True])
        assert torch.equal(block(x, **given), expected)
    block = WithArguments()
    skip_branches(nn.Sequential(block), rescale="none")
    block(x), block(x, None), block(x, shift=0.0)
    with pytest.raises(ValueError, match="its branches were cut out for scale=None, got"):
        block(x, bias)
    block.eval()(x, bias)  # as it is written


class InTraining(Block):
    def forward(self, x):
        return x + self.drop(self.f(F.dropout(x, 0.5, self.training)))


@pytest.mark.parametrize("rescale", ["train", "eval"])
def test_what_a_block_does_in_training_alone_stays_there(rescale):
    block = InTraining()
    skip_branches(nn.Sequential(block), rescale=rescale)
    x = torch.ones(8, 4)
    weight = 0.5 if rescale == "eval" else 1.0
    assert torch.allclose(block.eval()(x), x + weight * block.f(x))
    set_gates(block.train(), [True])
    assert not torch.equal(block(x), block(x))


def test_a_module_that_does_not_scale_stays_so():
    block = Block()
    block.drop = DropPath(0.5, scale_by_keep=False)
    skip_branches(nn.Sequential(block))
    set_gates(block, [True])
    x = torch.randn(3, 4)
    assert torch.equal(block(x), x + block.f(x))


def test_evaluation_scales_where_it_is_asked_to():
    net = nn.Sequential(Block(), Block())
    plain = copy.deepcopy(net).eval()
    skip_branches(net, rescale="eval", schedule=Uniform(0.25))
    x = torch.randn(3, 4)
    expected = x
    for block in plain:
        expected = expected + 0.25 * block.f(expected)
    torch.testing.assert_close(net.eval()(x), expected)


def test_a_schedule_gives_blocks_their_survival_and_rows_their_share():
    net = nn.Sequential(*(Block() for _ in range(4)), nn.Flatten(), nn.Linear(4, 16))
    rows = skip_branches(net, schedule=LinearDecay(0.2), input_shape=(4,))
    assert [row.survival for row in rows] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert [row.share for row in rows] == [1 / 8] * 4


class Zero(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.f, self.drop = nn.Linear(4, 4), DropPath(rate) if rate else nn.Identity()

    def forward(self, x):
        return x + self.drop(self.f(x))


def test_a_block_whose_rate_is_zero_has_a_gate_too():
    net = nn.Sequential(Zero(0.0), Zero(0.1))
    assert [row.survival for row in skip_branches(net)] == [1.0, 0.9]
    set_survival(net, [0.5, 0.5])
    set_gates(net, [False, False])
    x = torch.randn(3, 4)
    assert torch.equal(net(x), x)
    restore_branches(net)
    assert isinstance(net[0].drop, nn.Identity)


def test_the_same_gates_when_activations_are_computed_again():
    net = nn.Sequential(Block(), Block())
    skip_branches(net)
    x = torch.randn(6, 4, requires_grad=True)
    for gates in ([True, False], [False, True]):
        set_gates(net, gates)
        found = []
        for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
            net.zero_grad()
            out = run(x)
            out.square().sum().backward()
            found.append([out, *(p.grad for p in net.parameters())])
        for one, other in zip(*found, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_a_sum_that_is_overwritten_is_never_the_shortcut():
    class Post(Block):
        def forward(self, x):
            return F.relu(x + self.drop(self.f(x)), inplace=True)

    net = nn.Sequential(nn.Sigmoid(), Post())
    skip_branches(net)
    set_gates(net, [False])
    x = torch.randn(3, 4, requires_grad=True)
    net(x).sum().backward()  # without a copy: RuntimeError
    assert x.grad is not None


@pytest.mark.parametrize("granularity", ["batch", "sample", "subset"])
def test_under_autocast_the_sum_has_the_type_that_it_had(granularity):
    plain, x = nn.Sequential(Block()), torch.randn(6, 4)
    net = copy.deepcopy(plain)
    skip_branches(net, granularity=granularity)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == plain(x).dtype
        assert net(x.bfloat16()).dtype == plain(x.bfloat16()).dtype


class Stretches(Block):
    def forward(self, x):
        return x.mean(0, keepdim=True) + self.drop(self.f(x))


class Regrouped(Block):
    def forward(self, x):
        pairs = x.view(-1, 2, 4)
        return x + self.drop(self.f(pairs).view(-1, 4))


def test_what_shapes_alone_show_is_refused_when_it_runs():
    net = nn.Sequential(Stretches())
    skip_branches(net)
    set_gates(net, [True])
    with pytest.raises(ValueError, match="is stretched to"):
        net(torch.randn(6, 4))

    class Outside(Block):
        def forward(self, x):
            pairs = x.view(-1, 2, 4)
            return pairs.view(-1, 4) + self.drop(self.f(pairs).view(-1, 4))

    net = nn.Sequential(Outside())
    skip_branches(net, granularity="subset")
    with pytest.raises(ValueError, match="granularity must be batch or sample, got subset"):
        net(torch.randn(6, 4))


def test_a_gate_that_other_code_calls_is_no_silent_identity():
    net = nn.Sequential(Block())
    skip_branches(net)
    with pytest.raises(RuntimeError, match="would be added without a weight"):
        net[0].drop(torch.randn(3, 4))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_a_sequential_with_a_forward_of_its_own():
    net = nn.Sequential(Residual(nn.Linear(4, 4), nn.ReLU(), DropPath(0.5)))
    x = torch.randn(3, 4)
    expected = net.eval()(x)
    skip_branches(net)
    assert torch.equal(net(x), expected)
    set_gates(net.train(), [False])
    assert torch.equal(net(x), x)


def test_a_drop_path_module_that_many_blocks_share_is_a_gate_in_each():
    net, shared = nn.Sequential(Block(), Block(), Block()), DropPath(0.25)
    for block in net:
        block.drop = shared
    assert [row.survival for row in skip_branches(net)] == [0.75] * 3
    assert len(set(gated_modules(net))) == 3
    restore_branches(net)
    assert all(block.drop is shared for block in net)


def test_what_a_closed_block_gives_back_is_its_own():
    """As the sum was: whoever overwrites it changes nothing that others use."""
    first, block = nn.Linear(4, 4), nn.Sequential(Block())
    skip_branches(block)
    set_gates(block, [False])
    skip = first(torch.randn(3, 4))
    before = skip.detach().clone()
    out = block(skip)
    out *= 2
    assert torch.equal(skip, before)
