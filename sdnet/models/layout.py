"""Where a network's gates are: in which block and in which stage, in order of depth."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from sdnet.models.gates import Gated
from sdnet.models.schedules import mean_survival, survival_of


class Layout:
    """The gates of a network by block and by stage, whether its blocks are sdnet's or rewritten.

    A schedule gives a survival probability to each block. A block of sdnet has one gate; one that
    `sdnet.skip_branches` has rewritten may have several, e.g. for attention and for the MLP, which
    then have the same.

    Attributes:
        gates: the gated modules in order of depth.
        block_of: for each of them the number of its block, from 0.
        stage_blocks: blocks per stage: those directly inside one module, e.g. an nn.Sequential.
    """

    def __init__(self, model: nn.Module):
        owners: dict[nn.Module, str] = {}
        blocks: dict[str, int] = {}
        stages: dict[str, int] = {}
        self.gates: list[Gated] = []
        self.block_of: list[int] = []
        for name, module in model.named_modules():
            for path in gate_paths(module):
                owners[module.get_submodule(path)] = name
            if isinstance(module, Gated):
                block = owners.get(module, name)
                if block not in blocks:
                    blocks[block] = len(blocks)
                    stage = block.rpartition(".")[0]
                    stages[stage] = stages.get(stage, 0) + 1
                self.gates.append(module)
                self.block_of.append(blocks[block])
        self.stage_blocks = tuple(stages.values())

    @property
    def stage_gates(self) -> list[int]:
        """Gates per stage."""
        return list(Counter(self.stages).values())

    @property
    def stages(self) -> list[int]:
        """For each gate the number of its stage, from 1."""
        of_block = [s for s, count in enumerate(self.stage_blocks, start=1) for _ in range(count)]
        return [of_block[block] for block in self.block_of]

    def survival(
        self, schedule: Callable[..., Iterable[float]], progress: float | None = None
    ) -> list[float]:
        """For each gate what a schedule gives its block; see `schedules.survival_of`."""
        return self._of_gates(survival_of(schedule, self.stage_blocks, progress))

    def mean_survival(self, schedule: Callable[..., Iterable[float]]) -> list[float]:
        """For each gate its survival averaged over the training."""
        return self._of_gates(mean_survival(schedule, self.stage_blocks))

    def _of_gates(self, of_blocks: list[float]) -> list[float]:
        return [of_blocks[block] for block in self.block_of]


def gate_paths(block: Any) -> tuple[str, ...]:
    """Within a block that was rewritten: the paths of its gates; of any other none."""
    return tuple(getattr(type(block), "branch_layers", {}))


def branch_modules(model: nn.Module) -> dict[Gated, list[str]]:
    """For each gated module the paths of what its branch runs: of a block of sdnet its own path."""
    found: dict[Gated, list[str]] = {}
    for name, module in model.named_modules():
        for path in gate_paths(module):
            layers = type(module).branch_layers[path]  # type: ignore[attr-defined]
            gate = module.get_submodule(path)
            assert isinstance(gate, Gated)
            found[gate] = [f"{name}.{layer}".lstrip(".") for layer in layers]
        if isinstance(module, Gated) and module not in found:
            found[module] = [name]
    return found
