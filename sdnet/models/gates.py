"""Gates: the random variables b_l that decide which residual branches take part in a step.

Gates are data. A `GateSampler` draws those of one step on the CPU, `set_gates` puts them on the
blocks before the forward pass, and there they stay: a second forward, a recomputation under
activation checkpointing and a wrapping module all see the same ones.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sdnet import rng
from sdnet.models.checks import check_choice, check_count, check_each, check_survival

GRANULARITIES = ("batch", "sample", "subset")
RESCALES = ("eval", "train", "none")

OTHER_USE = (
    "these weights come from a network that multiplies its branches by other factors in evaluation "
    "than this one does: survival or rescale differ, and so will results. sdnet.load_run(folder) "
    "gives a run's network as it was trained"
)


def sent_to(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on a device; the host does not wait for its copy to CUDA, nor for what runs there.

    Such a copy comes from pinned memory, which torch keeps until the device has read it.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


class Subset(NamedTuple):
    """The rows (k,) of a batch of `of` rows that a branch is run on; whole numbers, ascending."""

    rows: Tensor
    of: int


def subset_size(rows: int, survival: float) -> int:
    """How many of a batch's rows a branch is run on with `subset` gates: at least one."""
    return max(1, round(rows * survival))


class Gated(nn.Module):
    """Base of a module whose branch is weighted by a gate: open, closed, or one gate per row.

    Args:
        survival: probability p_l that a gate is open, 0 < p_l <= 1.
        granularity: `batch` draws one gate per mini-batch (Huang et al. 2016; a closed gate runs
            nothing), `sample` one per row (a mask over the computed branch), `subset` the rows
            that the branch is run on, max(1, round(N p_l)) of N (Oquab et al. 2023, DINOv2): that
            saves time too, and BatchNorm sees those rows alone.
        rescale: where the branch is weighted to match its expectation: `eval` multiplies by p_l
            at test time (the paper), `train` divides by p_l (for `subset` by the share of rows
            that were run) in training (inverted scaling), `none` does neither.
    """

    fixed: float | None = None  # the factor in evaluation, where `fixed_weights` gives one

    def __init__(self, survival: float, granularity: str, rescale: str):
        super().__init__()
        # Plain attributes, not state: a checkpoint loads into a network with another schedule.
        self.survival = check_survival("survival", survival)
        self.granularity = check_choice("granularity", granularity, GRANULARITIES)
        self.rescale = check_choice("rescale", rescale, RESCALES)
        self.gate: bool | Tensor | Subset | None = None  # None: draw one's own in training

    def branch_weight(self, x: Tensor) -> tuple[float | Tensor, Tensor | None]:
        """The factor on the branch for input `x` (N, ...), and the rows that it is run on.

        Returns:
            weight: a float, or in training with `sample` gates a tensor of shape (N, 1, ..., 1);
                0.0 means that the branch need not be run.
            rows: (k,) whole numbers; None for all.
        """
        p = self.survival
        if not self.training:
            return self.weight_in_evaluation(), None
        if self.gate is None and p == 1.0:
            return 1.0, None
        if isinstance(x, torch.fx.Proxy):
            return one_draw_for_good(x), None  # type: ignore[arg-type]
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            one_draw_for_good(x)
        gate = self._own_gate(x) if self.gate is None else self.gate
        if isinstance(gate, bool):
            return (self._scale(p) if gate else 0.0), None
        _check_rows(gate.of if isinstance(gate, Subset) else len(gate), x)
        if isinstance(gate, Subset):
            share = len(gate.rows) / gate.of if gate.of else 1.0  # of no rows: all of them
            return (self._scale(share) if share else 0.0), gate.rows if 0 < share < 1 else None
        return (gate.to(x.dtype) * self._scale(p)).view(-1, *[1] * (x.ndim - 1)), None

    def weight_in_evaluation(self) -> float:
        if self.fixed is not None:
            return self.fixed
        return self.survival if self.rescale == "eval" else 1.0

    def _scale(self, share: float) -> float:
        """The factor in training on what survives, where that is `share` of all."""
        return 1.0 / share if self.rescale == "train" else 1.0

    def _own_gate(self, x: Tensor) -> bool | Tensor | Subset:
        if self.granularity == "batch":
            return bool(torch.rand((), device="cpu") < self.survival)
        if self.granularity == "sample":
            return torch.rand(len(x), device=x.device) < self.survival
        chosen = torch.randperm(len(x), device=x.device)[: subset_size(len(x), self.survival)]
        return Subset(chosen.sort().values, len(x))

    # A state_dict says beside its tensors, where torch notes versions, how they are to be used.
    # There it survives torch.save, and what knows nothing of it passes it by.

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            known = {"survival": self.survival, "weight_in_evaluation": self.weight_in_evaluation()}
            destination._metadata.setdefault(prefix[:-1], {}).update(known)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        weight = self.weight_in_evaluation()
        if local_metadata.get("weight_in_evaluation", weight) != weight:
            warnings.warn(OTHER_USE, stacklevel=2)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: give it a trace in evaluation "
            f"mode, torch.jit.script(torch.fx.symbolic_trace(model.eval()))"
        )

    def extra_repr(self) -> str:
        return f"survival={self.survival:.4g}, {self.granularity}, rescale={self.rescale}"


@torch.fx.wrap  # so that torch.fx notes the call: feature extractors trace both modes, to use one
def one_draw_for_good(x: Tensor) -> Tensor:
    """Stands in a traced network where, in training mode, a gate would be drawn."""
    raise RuntimeError(
        "a network in training mode draws its gates anew in every step; traced or exported it "
        "would keep one draw for good: call .eval() before, and use it in evaluation mode"
    )


def _check_rows(count: int, x: Tensor) -> None:
    if count != len(x):
        raise ValueError(f"gates were set for {count} rows, but the batch has {len(x)}")


def gated_modules(model: nn.Module) -> list[Gated]:
    """The gated modules of a model in order of depth."""
    return [module for module in model.modules() if isinstance(module, Gated)]


def granularity_of(model: nn.Module) -> str:
    """That of all gated modules of a model; ValueError where there are several."""
    return _granularity(gated_modules(model))


def _granularity(modules: Sequence[Gated]) -> str:
    found = sorted({module.granularity for module in modules})
    if len(found) > 1:
        raise ValueError(f"granularity must be one for the model, got {found}")
    return found[0] if found else "batch"


class GateSampler:
    """Draws the gates of a model's L gated modules, reproducibly for every step.

    What is drawn depends only on the seed, the step and the survival probabilities the modules
    have at that moment; with `subset` also on the parts in which a mini-batch is computed.

    Raises:
        ValueError: modules of different granularity in one model; a seed or a step that is no
            whole number, 0 or more.
    """

    def __init__(self, model: nn.Module, seed: int):
        self.modules = gated_modules(model)
        self.seed = check_count("seed", seed, least=0)
        self.granularity = _granularity(self.modules)

    def draw(self, step: int, batch_size: int | Sequence[int]) -> Tensor:
        """Booleans on the CPU, True for open: (L,) for `batch`, (L, N) for `sample` and `subset`.

        Args:
            batch_size: rows N of the mini-batch; or those of the parts in which it is computed,
                each of which then has its exact number of open `subset` gates.
        """
        given = batch_size if isinstance(batch_size, Sequence) else [batch_size]
        sizes = [check_count("batch_size", rows, least=0) for rows in given]
        shape = (len(self.modules), 1 if self.granularity == "batch" else sum(sizes))
        step = check_count("step", step, least=0)
        uniform = rng.generator(self.seed, "gates", step).random(shape)
        survival = [module.survival for module in self.modules]
        if self.granularity == "subset":
            parts = [
                _rank(part) < [[subset_size(size, p)] for p in survival]
                for part, size in zip(_split(uniform, sizes), sizes, strict=True)
            ]
            return torch.from_numpy(np.concatenate(parts, axis=1))
        gates = uniform < np.array(survival)[:, None]
        return torch.from_numpy(gates[:, 0] if self.granularity == "batch" else gates)


def _split(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1], axis=1)


def _rank(values: np.ndarray) -> np.ndarray:
    """The place of each value among those of its row: of random ones, a random permutation."""
    return values.argsort(axis=1).argsort(axis=1)


def set_gates(
    model: nn.Module, gates: Tensor | Sequence | None, modules: Sequence[Gated] | None = None
) -> None:
    """Puts gates on the gated modules of `model`, there to stay until the next call.

    Whatever puts it, or a copy of it, into training mode later meets them: torch's `update_bn` too.

    Args:
        model: any module that contains `Gated` ones.
        gates: (L,) booleans, or (L, N) for `sample` and `subset` granularity, in order of depth;
            None removes them, after which each module draws its own in training.
        modules: the `Gated` ones, where they are known; else they are looked for.

    Raises:
        ValueError: another number of gates than modules, or of dimensions than their granularity;
            modules of different granularity.
    """
    modules = gated_modules(model) if modules is None else modules
    if gates is None:
        gates = [None] * len(modules)
    else:
        gates = torch.as_tensor(gates)
        if gates.is_floating_point():
            raise ValueError("gates must be booleans, got floating-point numbers")
        gates = gates.bool()
        granularity = _granularity(modules)
        if gates.ndim != (1 if granularity == "batch" else 2):
            raise ValueError(
                f"gates must be (L,) for granularity batch and (L, N) for sample and subset, "
                f"got {tuple(gates.shape)} for {granularity}"
            )
        if len(gates) != len(modules):
            raise ValueError(f"gates must hold {len(modules)}, one per block, got {len(gates)}")
        if granularity == "batch":
            gates = gates.tolist()  # Python booleans: no device is asked whether to run a branch
        else:
            device = next((p.device for p in model.parameters()), gates.device)
            if granularity == "subset":
                gates = _subsets(gates.cpu(), device)
            else:
                gates = sent_to(device, gates)
    for module, gate in zip(modules, gates, strict=True):
        module.gate = gate


def _subsets(gates: Tensor, device: torch.device) -> list[Subset]:
    """The open rows of each module, found on the CPU: a device need not say how many they are."""
    counts = gates.sum(1).tolist()
    rows = sent_to(device, gates.nonzero()[:, 1])
    return [Subset(r, gates.shape[1]) for r in rows.split(counts)]


@contextmanager
def fixed_weights(weights: Mapping[Gated, float]) -> Iterator[None]:
    """Within it the branches of these gates have other factors in evaluation; 0.0: nothing runs."""
    before = {gate: gate.fixed for gate in weights}
    try:
        for gate, weight in weights.items():
            gate.fixed = weight
        yield
    finally:
        for gate, fixed in before.items():
            gate.fixed = fixed


def set_survival(model: nn.Module, survival: Sequence[float]) -> None:
    """Gives the gated modules of `model` new survival probabilities, in order of depth.

    Raises:
        ValueError: another number of values than modules, or one out of range; nothing is changed.
    """
    modules = gated_modules(model)
    given = check_each("survival", survival, len(modules), "gate")
    checked = [check_survival("survival", p) for p in given]
    for module, p in zip(modules, checked, strict=True):
        module.survival = p


def set_saved_survival(model: nn.Module, state_dict: Any) -> None:
    """Gives the gated modules the survival that they had when their `state_dict` was made.

    It differs from that of a new network where a schedule changes during training. Nothing
    happens where it is not known.
    """
    known = getattr(state_dict, "_metadata", {})
    gated = [(name, m) for name, m in model.named_modules() if isinstance(m, Gated)]
    set_survival(model, [known.get(name, {}).get("survival", m.survival) for name, m in gated])
