"""Gates: the random variables b_l that decide which residual branches take part in a step.

Gates are data. A `GateSampler` draws those of one step on the CPU, `set_gates` puts them on the
blocks before the forward pass, and there they stay: a second forward, a recomputation under
activation checkpointing and a wrapping module all see the same ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sdnet import rng
from sdnet.models.checks import check_choice, check_survival

GRANULARITIES = ("batch", "sample")
RESCALES = ("eval", "train", "none")


class Gated(nn.Module):
    """Base of a module whose branch is weighted by a gate: open, closed, or one gate per row.

    Args:
        survival: probability p_l that a gate is open, 0 < p_l <= 1.
        granularity: `batch` draws one gate per mini-batch (Huang et al. 2016; a closed gate runs
            nothing), `sample` one per row (a mask over the computed branch).
        rescale: where the branch is weighted to match its expectation: `eval` multiplies by p_l
            at test time (the paper), `train` divides by p_l in training (inverted scaling),
            `none` does neither.
    """

    def __init__(self, survival: float, granularity: str, rescale: str):
        super().__init__()
        # Plain attributes, not state: a checkpoint loads into a network with another schedule.
        self.survival = check_survival("survival", survival)
        self.granularity = check_choice("granularity", granularity, GRANULARITIES)
        self.rescale = check_choice("rescale", rescale, RESCALES)
        self.gate: bool | Tensor | None = None  # None: draw one's own in training

    def branch_weight(self, x: Tensor) -> float | Tensor:
        """The factor on the branch for input `x` (N, C, H, W); 0.0 means it need not be run.

        Returns:
            A float, or in training with `sample` gates a tensor of shape (N, 1, 1, 1).
        """
        p = self.survival
        if not self.training:
            return p if self.rescale == "eval" else 1.0
        gate = self._own_gate(x) if self.gate is None else self.gate
        scale = 1.0 / p if self.rescale == "train" else 1.0
        if not isinstance(gate, Tensor):
            return scale if gate else 0.0
        if len(gate) != len(x):
            raise ValueError(f"gates were set for {len(gate)} rows, but the batch has {len(x)}")
        return (gate.to(x.dtype) * scale).view(-1, 1, 1, 1)

    def _own_gate(self, x: Tensor) -> bool | Tensor:
        if self.survival == 1.0:
            return True
        if self.granularity == "batch":
            return bool(torch.rand(()) < self.survival)
        return torch.rand(len(x), device=x.device) < self.survival

    def extra_repr(self) -> str:
        return f"survival={self.survival:.4g}, {self.granularity}, rescale={self.rescale}"


def gated_modules(model: nn.Module) -> list[Gated]:
    """The gated modules of a model in order of depth."""
    return [module for module in model.modules() if isinstance(module, Gated)]


class GateSampler:
    """Draws the gates of a model's L gated modules, reproducibly for every step.

    What is drawn depends only on the seed, the step and the survival probabilities the modules
    have at that moment.

    Raises:
        ValueError: modules of different granularity in one model.
    """

    def __init__(self, model: nn.Module, seed: int):
        self.modules = gated_modules(model)
        self.seed = seed
        granularities = sorted({module.granularity for module in self.modules})
        if len(granularities) > 1:
            raise ValueError(f"granularity must be one for the model, got {granularities}")
        self.per_sample = granularities == ["sample"]

    def draw(self, step: int, batch_size: int) -> Tensor:
        """Booleans on the CPU, True for open: (L,) for `batch`, (L, batch_size) for `sample`."""
        shape = (len(self.modules), batch_size if self.per_sample else 1)
        uniform = rng.generator(self.seed, "gates", step).random(shape)
        gates = uniform < np.array([[module.survival] for module in self.modules])
        return torch.from_numpy(gates if self.per_sample else gates[:, 0])


def set_gates(model: nn.Module, gates: Tensor | Sequence | None) -> None:
    """Puts gates on the gated modules of `model`, there to stay until the next call.

    Args:
        model: any module that contains `Gated` ones.
        gates: (L,) booleans, or (L, N) for `sample` granularity, in order of depth; None removes
            them, after which each module draws its own in training.

    Raises:
        ValueError: another number of gates than modules, or of dimensions than their granularity.
    """
    modules = gated_modules(model)
    if gates is None:
        gates = [None] * len(modules)
    else:
        gates = torch.as_tensor(gates)
        if gates.is_floating_point():
            raise ValueError("gates must be booleans, got floating-point numbers")
        gates = gates.bool()
        for module in modules:
            if gates.ndim != (2 if module.granularity == "sample" else 1):
                raise ValueError(
                    f"gates must be (L,) for granularity batch and (L, N) for sample, got "
                    f"{tuple(gates.shape)} for {module.granularity}"
                )
        if len(gates) != len(modules):
            raise ValueError(f"gates must hold {len(modules)}, one per block, got {len(gates)}")
        if gates.ndim == 1:
            gates = gates.tolist()  # Python booleans: no device is asked whether to run a branch
        else:
            device = next((p.device for p in model.parameters()), gates.device)
            gates = gates.to(device, non_blocking=True)
    for module, gate in zip(modules, gates, strict=True):
        module.gate = gate


def set_survival(model: nn.Module, survival: Sequence[float]) -> None:
    """Gives the gated modules of `model` new survival probabilities, in order of depth.

    Raises:
        ValueError: another number of values than modules, or one out of range; nothing is changed.
    """
    modules = gated_modules(model)
    if len(survival) != len(modules):
        raise ValueError(f"survival must hold {len(modules)} values, got {len(survival)}")
    checked = [check_survival("survival", p) for p in survival]
    for module, p in zip(modules, checked, strict=True):
        module.survival = p
