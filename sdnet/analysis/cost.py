"""What a network costs: parameters, multiply-adds, and how much of it stochastic depth expects."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sdnet.models.gates import gated_modules, granularity_of, stage_blocks

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


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
    """A network's cost per image in one forward pass; multiply-adds of the layers in `COUNTED`."""

    blocks: list[BlockCost]
    parameters: int
    macs: int
    granularity: str

    @property
    def expected_blocks(self) -> float:
        """Sum of p_l: the expected number of active blocks."""
        return sum(block.survival for block in self.blocks)

    @property
    def expected_macs(self) -> float:
        """Multiply-adds expected in training, where closed gates skip their branch."""
        if self.granularity == "sample":
            return float(self.macs)  # masks save nothing
        return self.macs - sum((1.0 - b.survival) * b.branch_macs for b in self.blocks)

    @property
    def expected_share(self) -> float:
        """The share of the multiply-adds expected in a training step's forward pass."""
        return self.expected_macs / self.macs if self.macs else 1.0


def network_cost(model: nn.Module, image_shape: Sequence[int]) -> Cost:
    """The cost of a network with gated blocks for images (C, H, W); it is not changed.

    A block's shortcut is what it calls `downsample`, all else its branch. One image is computed
    on the model's device; on the meta device, nothing.
    """
    # By hooks: torch's FlopCounterMode gives the same numbers, but like most operations on the meta
    # device it imports torch's compiler first, which takes longer than the image.
    model = copy.deepcopy(model).eval()
    macs = Counter()

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        macs[layer] += output.numel() * layer.weight[0].numel()

    def macs_in(module: nn.Module | None) -> int:
        return 0 if module is None else sum(macs[layer] for layer in module.modules())

    for module in model.modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    stages = [s for s, count in enumerate(stage_blocks(model), start=1) for _ in range(count)]
    blocks = []
    for stage, block in zip(stages, gated_modules(model), strict=True):
        shortcut = macs_in(getattr(block, "downsample", None))
        branch = macs_in(block) - shortcut
        blocks.append(BlockCost(stage, block.survival, _parameters(block), branch, shortcut))
    return Cost(blocks, _parameters(model), macs.total(), granularity_of(model))


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
