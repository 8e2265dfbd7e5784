"""What cannot be cut out is refused, with the module and the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdnet import (
    DropPath,
    LinearDecay,
    Uniform,
    add_stochastic_depth,
    resnet_cifar,
    skip_branches,
)
from sdnet.models.gates import gated_modules
from tests.models.drop_blocks import Alone, Block


class UsedOutside(Block):
    def forward(self, x):
        y = self.f(x)
        return x + self.drop(y), y


class ScaledAfter(Block):
    def forward(self, x):
        return x + self.f(self.drop(self.f(x)))


class NothingAlone(Block):
    def forward(self, x):
        y = self.f(x)
        return y + self.drop(y)


class Twice(Block):
    def forward(self, x):
        y = self.drop(self.f(x))
        return x + y + y


class Subtracted(Block):
    def forward(self, x):
        return x - self.drop(self.f(x))


class AddedToNumber(Block):
    def forward(self, x):
        return x * (1 + self.drop(self.f(x)))


class Flow(Block):
    def forward(self, x):
        return x + self.drop(self.f(x)) if x.sum() > 0 else x


class Makes(Block):
    def forward(self, x):
        return x + self.drop(self.f(x) + torch.arange(4.0))


class OverwritesInput(Block):
    def forward(self, x):
        return x + self.drop(self.f(F.relu_(x.view(-1, 4))))


class OverwritesBetween(Block):
    def forward(self, x):
        x = x * 1.0
        y = self.drop(self.f(x))
        return x.mul_(2.0) + y


class OnlyInTraining(Block):
    def forward(self, x):
        return x + self.drop(self.f(x)) if self.training else x + self.f(x)


class ByMethod(nn.Module):
    """It calls what is in a module, and not that."""

    def __init__(self):
        super().__init__()
        self.part = Alone()

    def forward(self, x):
        return x + self.part.drop(self.part.f(x))


def by_hand():
    block = Block()
    block.forward = lambda x: x
    return block


def hooked():
    block = Block()
    block.drop.register_forward_hook(lambda *_: None)
    return block


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (UsedOutside(), "f in its branch is also used by the block's result"),
        (ScaledAfter(), "between it and the sum comes f, which is no mere scale"),
        (NothingAlone(), "no module is called for it alone"),
        (Twice(), "its result is used 2 times"),
        (Subtracted(), "between it and the sum comes sub"),
        (AddedToNumber(), "what it is added to is no tensor"),
        (nn.Sequential(nn.Sequential(Alone())), "there is no sum"),
        (Flow(), "torch.fx cannot trace it: TraceError"),
        (Makes(), "it makes a tensor that does not follow from its input"),
        (OverwritesInput(), "relu_ in its branch changes the branch's input in place"),
        (OverwritesBetween(), "mul_ changes in place what its branch reads"),
        (OnlyInTraining(), "in evaluation its block does not call it"),
        (by_hand(), "its forward was replaced by hand"),
        (hooked(), "has hooks"),
        (nn.Sequential(DropPath(0.1), nn.Linear(4, 4)), "in the midst of an nn.Sequential"),
        (nn.Sequential(Alone(), nn.Linear(4, 4)), "in the midst of an nn.Sequential"),
        (ByMethod(), r"ByMethod.forward adds part to nothing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_branch_that_cannot_be_cut_out_is_named_and_nothing_is_changed(block, reason):
    net = nn.Sequential(Block(), block)
    before = repr(net), [type(m) for m in net.modules()]
    with pytest.raises(ValueError, match=reason) as raised:
        skip_branches(net)
    assert "1." in str(raised.value)  # its path
    assert (repr(net), [type(m) for m in net.modules()]) == before
    if "hooks" not in reason:
        rows = skip_branches(net, strict=False)
        assert [row.module for row in rows if row.reason is None] == ["0.drop"]
        assert [row.module for row in rows if row.reason] and reason in rows[-1].reason
        assert len(gated_modules(net)) == 1


def test_the_line_that_cannot_be_traced_is_named():
    line = Flow.forward.__code__.co_firstlineno + 1
    with pytest.raises(ValueError, match=rf" \(test_surgery_refusals\.py, line {line}\)$"):
        skip_branches(nn.Sequential(Flow()))


def test_a_network_without_such_a_branch_is_refused():
    with pytest.raises(ValueError, match="Sequential has no residual branch that ends in a"):
        skip_branches(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="the blocks of ResNet skip their branches already"):
        skip_branches(resnet_cifar(8))
    net = nn.Sequential(Block())
    skip_branches(net)
    with pytest.raises(ValueError, match="have gates already"):
        skip_branches(net)
    with pytest.raises(ValueError, match="no residual block that add_stochastic_depth knows"):
        add_stochastic_depth(nn.Sequential(nn.Linear(2, 2)), Uniform(0.5))
    with pytest.raises(ValueError, match="no residual branch of Sequential can be cut out"):
        skip_branches(nn.Sequential(Twice()), strict=False)


def test_a_block_that_is_used_twice_is_refused():
    shared = Block()
    with pytest.raises(ValueError, match="0 and 2 are one module that is used twice"):
        skip_branches(nn.Sequential(shared, Block(), shared))


def test_a_block_that_drops_already_is_not_dropped_twice():
    net = nn.Sequential(Block(0.0), Block())
    with pytest.raises(ValueError, match=r"^1\.drop is a DropPath that would drop besides"):
        add_stochastic_depth(net, Uniform(0.5), block_types=[Block])
    assert not gated_modules(net)
    assert len(add_stochastic_depth(net[:1], Uniform(0.5), block_types=[Block])) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "row"},
        {"rescale": "both"},
        {"drop_types": [Block()]},
        {"drop_types": Block},
        {"schedule": 0.5},
        {"schedule": LinearDecay},
        {"input_shape": (1, 3)},
        {"input_shape": 4},
    ],
    ids=str,
)
def test_arguments_are_checked_by_name(options):
    (name,) = options
    net = nn.Sequential(Block())
    with pytest.raises(ValueError, match=rf"^{name} must be .* got .*$"):
        skip_branches(net, **options)
    assert not gated_modules(net)
    with pytest.raises(ValueError, match=r"^block_types must be .* got <class"):
        add_stochastic_depth(net, Uniform(0.5), block_types=Block)
