import pytest
from torch import nn

from sdnet import BasicBlock, DropPath, LinearDecay, resnet_cifar, skip_branches
from sdnet.models.layout import Layout


def block():
    return BasicBlock(4, 4)


class Transformer(nn.Module):
    """Two branches, each with a gate."""

    def __init__(self, rate):
        super().__init__()
        self.attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop1, self.drop2 = DropPath(rate), DropPath(rate)

    def forward(self, x):
        x = x + self.drop1(self.attn(x))
        return x + self.drop2(self.mlp(x))


def test_blocks_inside_one_module_are_a_stage():
    assert Layout(resnet_cifar(20)).stage_blocks == (3, 3, 3)
    assert Layout(nn.Sequential(block(), block())).stage_blocks == (2,)
    nested = nn.Sequential(nn.Sequential(block()), block(), nn.ModuleList([block(), block()]))
    assert Layout(nested).stage_blocks == (1, 1, 2)
    assert Layout(nn.Linear(2, 2)).stage_blocks == ()


def test_both_branches_of_a_rewritten_block_have_what_a_schedule_gives_the_block():
    net = nn.Sequential(nn.Sequential(Transformer(0.1), Transformer(0.2)), Transformer(0.3))
    skip_branches(net)
    layout = Layout(net)
    assert layout.stage_blocks == (2, 1)
    assert layout.stage_gates == [4, 2]
    assert layout.block_of == [0, 0, 1, 1, 2, 2]
    survival = layout.survival(LinearDecay(0.4))
    assert survival == pytest.approx([0.8, 0.8, 0.6, 0.6, 0.4, 0.4])
