"""What a network costs: parameters, multiply-adds, and how much of it stochastic depth expects."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class BlockCost:
    """One residual block; `branch_macs` are the multiply-adds per image a closed gate saves."""

    stage: int
    survival: float
    parameters: int
    branch_macs: int
    shortcut_macs: int


@dataclass
class Cost:
    """A network's cost per image in one forward pass; multiply-adds of convolutions and fc."""

    blocks: list[BlockCost]
    parameters: int
    macs: int

    @property
    def expected_blocks(self) -> float:
        """Sum of p_l: the expected number of active blocks."""
        return sum(block.survival for block in self.blocks)

    @property
    def expected_macs(self) -> float:
        """Multiply-adds expected in training, when closed gates skip their branch."""
        return self.macs - sum((1.0 - b.survival) * b.branch_macs for b in self.blocks)


def network_cost(model: nn.Module, image_shape: Sequence[int]) -> Cost:
    """The cost of a `sdnet.models.resnet.ResNet` for images (C, H, W), counted without computing.

    The model may itself be on the meta device; it is not changed.
    """
    meta = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        meta(torch.empty(1, *image_shape, device="meta"))
    flops = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    blocks = []
    for stage, name in enumerate(model.layers, start=1):
        for i, block in enumerate(getattr(model, name)):
            path = f"{type(model).__name__}.{name}.{i}"
            shortcut = flops.get(f"{path}.downsample", 0) // 2  # a multiply-add is two operations
            blocks.append(
                BlockCost(
                    stage,
                    block.survival,
                    _parameters(block),
                    flops.get(path, 0) // 2 - shortcut,
                    shortcut,
                )
            )
    return Cost(blocks, _parameters(model), flops["Global"] // 2)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
