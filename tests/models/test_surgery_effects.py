"""What a trace would lose, of what researchers write in a `forward`: refused, or kept."""

import collections
import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdnet import DropPath, restore_branches, set_gates, skip_branches
from tests.models.test_surgery_refusals import Block


class WithoutGradient(Block):
    def forward(self, x):
        with torch.no_grad():
            y = self.f(x)
        return x + self.drop(self.f(x) * y)


class WithoutAutocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.f(x.float())
        return x + self.drop(y)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


class OwnGradient(Block):
    def forward(self, x):
        return x + self.drop(self.f(Reversed.apply(x)))


class Named(collections.OrderedDict):
    pass


class NamedResult(Block):
    def forward(self, x):
        return Named(y=x + self.drop(self.f(x)))


class Asks(Block):
    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            x = x[0]
        return x + self.drop(self.f(x))


class Counts(Block):
    steps = 0

    def forward(self, x):
        self.steps += 1
        return x + self.drop(self.f(x))


class Holds(Block):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return x + self.drop(self.f(x))


class Averages(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x + self.drop(self.f(x))


class Draws(Block):
    def forward(self, x):
        x = 2 * x if random.random() < 0.5 else x
        return x + self.drop(self.f(x))


class DrawsByTorch(Block):
    def forward(self, x):
        x = 2 * x if torch.rand(1).item() < 0.5 else x
        return x + self.drop(self.f(x))


class TwoOfOneSum(Block):
    def __init__(self):
        super().__init__()
        self.other = DropPath(0.5)

    def forward(self, x):
        return x + (self.drop(self.f(x)) + self.other(self.f(x)))


class Scale(nn.Module):
    """Not what its name says."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + self.bias


class Shifted(Block):
    def __init__(self):
        super().__init__()
        self.scale = Scale()

    def forward(self, x):
        return x + self.scale(self.drop(self.f(x)))


class OverwritesAView(Block):
    def forward(self, x):
        x = x * 1.0
        y = self.drop(self.f(x))
        x[:, :2].mul_(2.0)
        return x + y


class OverwritesAnOther(Block):
    def forward(self, x):
        x = x * 1.0
        y = self.drop(self.f(x))
        torch.mul(x, 2.0, out=x)
        return x + y


class OverwritesByOperator(Block):
    def forward(self, x):
        x = x * 1.0
        skip = x
        x += 1.0  # the skip too
        return skip + self.drop(self.f(x))


class SumByOperator(Block):
    def forward(self, x):
        x = x * 1.0
        skip = x
        x += self.drop(self.f(x))
        return x + skip


class OverwritesABuffer(Averages):
    def forward(self, x):
        y = self.drop(self.f(x) + self.mean)
        self.mean.copy_(x.mean(0))
        return x + y


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (WithoutGradient(), "it computes in torch.no_grad or torch.autocast"),
        (WithoutAutocast(), "it computes in torch.no_grad or torch.autocast"),
        (OwnGradient(), "it calls Reversed.apply, whose backward pass a trace loses"),
        (NamedResult(), "it makes a Named: a trace would make a plain dict of it"),
        (Asks(), "asks whether something is a Tensor"),
        (Counts(), "its forward changes self.steps"),
        (Holds(), "its forward changes self.seen"),
        (Averages(), "its forward changes self._buffers"),
        (Draws(), "its forward draws random numbers"),
        (DrawsByTorch(), "its forward draws random numbers"),
        (TwoOfOneSum(), "it is added to another branch"),
        (Shifted(), "between it and the sum comes scale, which is no mere scale"),
        (OverwritesAView(), "mul_ changes in place what its branch reads"),
        (OverwritesAnOther(), "mul_1 changes in place what its branch reads"),
        (OverwritesByOperator(), "iadd in its branch changes the branch's input in place"),
        (SumByOperator(), "its sum changes mul in place, which is used later"),
        (OverwritesABuffer(), "copy_ changes in place what its branch reads"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_a_trace_would_lose_is_refused_and_undone(block, reason):
    net = nn.Sequential(block)
    before = [(vars(m).copy(), copy.copy(vars(m).get("seen"))) for m in net.modules()]
    buffers = list(net.buffers())
    random.seed(0), torch.manual_seed(0)
    drawn = random.getstate(), torch.get_rng_state()
    with pytest.raises(ValueError, match=reason):
        skip_branches(net)
    assert [(vars(m), vars(m).get("seen")) for m in net.modules()] == before
    assert all(one is other for one, other in zip(net.buffers(), buffers, strict=True))
    assert drawn[0] == random.getstate() and torch.equal(drawn[1], torch.get_rng_state())


class Weighted(Block):
    def __init__(self):
        super().__init__()
        self.weight, self.more = 1.0, None

    def forward(self, x):
        x = x if self.more is None else self.more(x)
        return x + self.weight * self.drop(self.f(x))


def test_settings_that_were_read_may_not_change():
    block, x = Weighted(), torch.randn(3, 4)
    skip_branches(nn.Sequential(block))
    block(x)
    block.weight = 0.5
    with pytest.raises(ValueError, match=r"Weighted: its branches were cut out for weight=1\.0, "):
        block(x)
    assert torch.equal(block.eval()(x), x + 0.5 * block.f(x))  # as it is written
    block.weight, block.more = 1.0, nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"for more=None, now it is Linear\(.*: set it before"):
        block.train()(x)
    restore_branches(nn.Sequential(block))
    block(x)


class Overwriting(nn.Linear):
    def forward(self, x):
        return super().forward(F.relu_(x))


class OverwritesUnseen(Block):
    def __init__(self):
        super().__init__()
        self.f = Overwriting(4, 4)

    def forward(self, x):
        x = x * 1.0
        return x + self.drop(self.f(x))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_module_that_overwrites_the_input_of_a_branch_is_found_when_it_runs(granularity):
    block = OverwritesUnseen()
    skip_branches(nn.Sequential(block), granularity=granularity)
    set_gates(block, [True] if granularity == "batch" else [[True] * 3])
    with pytest.raises(ValueError, match="a module of its branch changes the branch's input"):
        block(torch.randn(3, 4))


class Conditioned(Block):
    def forward(self, x, y):
        return x + self.drop(self.f(x * y.mean(0) + y.shape[0]))


def test_rows_of_another_argument_are_no_guess():
    block, x = Conditioned(), torch.randn(6, 4)
    skip_branches(nn.Sequential(block), granularity="subset")
    block(x, torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"reads another argument of 6 rows, .* got subset"):
        block(x, x)


class Halves(Block):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(2, 2)

    def forward(self, x):
        first, second = x.chunk(2, 1)
        return first + self.drop(self.f(second))


def test_rows_of_the_parts_of_a_tensor():
    block, x = Halves(), torch.randn(3, 4)
    skip_branches(nn.Sequential(block), granularity="subset", rescale="none")
    set_gates(block, [[True, False, True]])
    expected = x[:, :2] + torch.tensor([[1.0], [0.0], [1.0]]) * block.f(x[:, 2:])
    torch.testing.assert_close(block(x), expected)


class InDict(Block):
    def forward(self, given):
        return {"x": given["x"] + self.drop(self.f(given["x"])), "scale": given["scale"]}


def test_rows_of_a_dict():
    block, x = InDict(), torch.randn(3, 4)
    skip_branches(nn.Sequential(block), granularity="subset", rescale="none")
    set_gates(block, [[True, False, True]])
    expected = x + torch.tensor([[1.0], [0.0], [1.0]]) * block.f(x)
    torch.testing.assert_close(block({"x": x, "scale": 3})["x"], expected)


class Collides(Block):
    def __init__(self):
        super().__init__()
        self.branch_0 = nn.Linear(4, 4)

    def forward(self, x):
        x = self.branch_0(x)
        y = self.drop(self.f(x))
        y *= 0.5
        y += x
        y[:, 0].mul_(2.0)
        return y


def test_names_and_operators_in_place():
    block, x = Collides(), torch.randn(3, 4)
    expected = copy.deepcopy(block).eval()(x)
    skip_branches(nn.Sequential(block), rescale="none")
    set_gates(block, [True])
    torch.testing.assert_close(block(x), expected)
    kept = []
    block.branch_0.register_forward_hook(lambda module, args, out: kept.append((out, out.clone())))
    set_gates(block, [False])
    block(x)
    assert torch.equal(*kept[0])


class Tenth(DropPath):
    def forward(self, x):
        return 0.1 * super().forward(x)


def test_a_drop_path_module_with_a_forward_of_its_own():
    net = nn.Sequential(Block())
    net[0].drop = Tenth(0.5)
    with pytest.raises(ValueError, match=r"0\.drop: Tenth is a DropPath with a forward of its own"):
        skip_branches(net)
    assert skip_branches(net, drop_types=[Tenth])[0].survival == 0.5


def test_a_drop_path_module_in_evaluation_mode_stays_so():
    net, x = nn.Sequential(Block()), torch.randn(3, 4)
    net[0].drop.eval()
    skip_branches(net)
    set_gates(net, [False])
    torch.testing.assert_close(net(x), x + net[0].f(x))
    assert not (restore_branches(net) and net[0].drop.training)


class CallsNone(Block):
    def forward(self, x):
        return x + self.f(x)


def test_a_drop_path_module_that_no_block_calls():
    with pytest.raises(ValueError, match=r"can be cut out\. no block calls its drop-path module"):
        skip_branches(nn.Sequential(CallsNone()))


def test_a_shallow_copy_and_the_meta_device():
    block, x = Block(), torch.randn(3, 4)
    skip_branches(nn.Sequential(block))
    assert torch.equal(copy.copy(block).eval()(x), block.eval()(x))
    with torch.device("meta"):
        net = nn.Sequential(Block())
        skip_branches(net)
        net(torch.randn(3, 4))
