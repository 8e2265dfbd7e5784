"""What a network costs: parameters, multiply-adds, and how much of it stochastic depth expects."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sdnet.models.gates import granularity_of
from sdnet.models.layout import Layout, branch_modules
from sdnet.models.macs import Macs


@dataclass
class BlockCost:
    """One residual branch; `branch_macs` are the multiply-adds per image a closed gate saves.

    A block, counted from 1, may have several; `module` is the path of the branch's gate. It is run
    on the share `run_on` of the images: its survival, or what that is when it is rounded.
    """

    stage: int
    survival: float
    parameters: int
    branch_macs: int
    shortcut_macs: int
    block: int
    module: str
    run_on: float


@dataclass
class Cost:
    """A network's cost per image in one forward pass; see `Macs`."""

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
        return self.macs - sum((1.0 - b.run_on) * b.branch_macs for b in self.blocks)

    @property
    def expected_share(self) -> float:
        """The share of the multiply-adds expected in a training step's forward pass."""
        return self.expected_macs / self.macs if self.macs else 1.0

    def epochs_for(self, budget: float, images: int, batch_size: int) -> float:
        """The epochs that compute what `budget` epochs of constant depth would.

        The last of them ends within its course, after the step that comes nearest.
        """
        whole, rest = divmod(budget / self.expected_share, 1.0)
        per_epoch = -(-images // batch_size)
        below = min(int(rest * images // batch_size), per_epoch - 1)  # steps of the last epoch
        ends = {n: abs(min(n * batch_size, images) - rest * images) for n in (below, below + 1)}
        epochs = max(int(whole) * per_epoch + min(ends, key=lambda n: ends[n]), 1) / per_epoch
        return int(epochs) if epochs.is_integer() else epochs

    def training_macs(self, epochs: float, images: int, batch_size: int) -> float:
        """Multiply-adds expected in the forward passes of a training."""
        per_epoch = -(-images // batch_size)
        whole, steps = divmod(round(epochs * per_epoch), per_epoch)
        return self.expected_macs * (whole * images + steps * batch_size)

    def off(self, budget: float, epochs: float, images: int, batch_size: int) -> float:
        """By what share of it a training exceeds a budget of epochs of constant depth."""
        return self.training_macs(epochs, images, batch_size) / (budget * images * self.macs) - 1


def network_cost(
    model: nn.Module,
    image_shape: Sequence[int],
    survival: Sequence[float] | None = None,
    run_on: Sequence[float] | None = None,
) -> Cost:
    """The cost of a network with gates for images (C, H, W); see `Macs`. It is not changed.

    Args:
        survival: of each gate; None: what it has now.
        run_on: of each gate, the share of the images on which its branch runs; None: its survival.
    """
    layout, macs = Layout(model), Macs(model, image_shape)
    modules, saved = branch_modules(model), macs.of_gates()
    names = {module: name for name, module in model.named_modules()}
    survival = survival or [gate.survival for gate in layout.gates]
    shares = survival if run_on is None else run_on
    gates = zip(layout.block_of, layout.stages, layout.gates, survival, shares, strict=True)
    blocks = [
        BlockCost(
            stage,
            p,
            _parameters(model, modules[gate]),
            *saved[gate],
            block + 1,
            names[gate],
            share,
        )
        for block, stage, gate, p, share in gates
    ]
    return Cost(blocks, _parameters(model, [""]), macs.total, granularity_of(model))


def _parameters(model: nn.Module, paths: Sequence[str]) -> int:
    return sum(p.numel() for path in paths for p in model.get_submodule(path).parameters())
