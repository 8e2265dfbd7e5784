"""Residual branches compiled by torch.compile; gates, scaling, shortcut and sum stay outside.

The blocks of a class share one compiled function, of which their parameters are inputs: one graph
serves all blocks of a shape, and whatever decides which of them run, and how often, is no part of
it. The number of rows is none either: one graph serves the last mini-batch of an epoch, and the
rows of a `subset`. Where torch cannot compile it would fall back to the plain function without a
word; here that is an error.
"""

import weakref
from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn

from sdnet.models.blocks import ResidualBlock
from sdnet.models.cutting.gate import Gate
from sdnet.models.gates import gated_modules
from sdnet.models.layout import branch_modules

# Graphs that a shape of block may have. Nine are known: training, its recomputation and evaluation,
# each for many rows, for fewer than 16 (on CPUs torch computes those another way) and for one.
GRAPHS = 16


def compilable(model: nn.Module) -> bool:
    """Whether `model` has blocks, all of sdnet or rewritten: then there are branches to compile."""
    blocks = gated_modules(model)
    return bool(blocks) and all(isinstance(block, ResidualBlock | Gate) for block in blocks)


def compile_branches(model: nn.Module, backend: str | Callable = "inductor") -> None:
    """Has the branch of each block of `model` compiled when it first runs.

    Parameters keep their names. A copy of the model (`copy.deepcopy`, pickle) is not compiled.

    Args:
        backend: as for torch.compile.

    Raises:
        ValueError: a model that is not `compilable`. Later, in a step, RuntimeError: a branch that
            cannot be compiled as one graph, or needs another one again and again.
    """
    if not compilable(model):
        raise ValueError(
            f"{type(model).__name__} has blocks other than ResidualBlock, which skip_branches did "
            f"not rewrite, or none"
        )
    from torch import _dynamo  # takes seconds

    shapes = {
        tuple(p.shape for path in paths for p in model.get_submodule(path).parameters())
        for paths in branch_modules(model).values()
    }
    # On top of what other networks in this process may need: they share torch's cache.
    limit = _dynamo.config.recompile_limit + GRAPHS * len(shapes)
    compiled = _Compiled(limit, backend)
    for block in gated_modules(model):
        if isinstance(block, Gate):
            block.compiled = compiled
        elif isinstance(block, ResidualBlock):
            branch = compiled(type(block).branch)
            block.branch = _Branch(block, branch)  # type: ignore[assignment]


class _Compiled:
    """Functions of branches, each compiled once; a copy of a network has none of them."""

    def __init__(self, limit: int, backend: str | Callable):
        self.limit, self.backend = limit, backend
        self.known: dict[Callable, Callable] = {}

    def __call__(self, branch: Callable) -> Callable:
        if branch not in self.known:
            self.known[branch] = _compiled(branch, self.limit, self.backend)
        return self.known[branch]

    def __reduce__(self) -> tuple:
        return _none, ()


def _none() -> None:
    return None


def _compiled(branch: Callable, limit: int, backend: str | Callable) -> Callable:
    from torch import _dynamo

    config = _dynamo.config
    # Not dynamic but for the number of rows, below: else torch, which sees images of several sizes
    # in turn, makes height and width variables of a graph too.
    compiled = torch.compile(branch, fullgraph=True, dynamic=False, backend=backend)

    def run(block: nn.Module, x: Tensor, *more: Tensor) -> Tensor:
        if config.recompile_limit < limit:  # in this thread: CUDA's backward pass has its own
            config.recompile_limit = limit
            config.accumulated_recompile_limit = max(limit, config.accumulated_recompile_limit)
        _dynamo.maybe_mark_dynamic(x, 0)
        try:
            return compiled(block, x, *more)
        except _dynamo.exc.FailOnRecompileLimitHit as error:
            reason = (
                f"something that it depends on keeps changing, and {limit} graphs are the limit "
                f"(TORCH_LOGS=recompiles shows what)"
            )
            raise RuntimeError(_not_compiled(block, branch, reason)) from error
        except _dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(_not_compiled(block, branch, _reason(error))) from error

    return run


def _not_compiled(block: nn.Module, branch: Callable, reason: str) -> str:
    name = f"{type(block).__name__}.{branch.__name__}"
    return f"{name} cannot be compiled, trainer.compile=null runs it as it is: {reason}"


def _reason(error: Exception) -> str:
    """The first of torch's many lines, and the one that explains it, or a C++ compiler's error."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    found = [line.strip() for line in more if "Explanation:" in line or "error:" in line]
    return " … ".join([first, *found[:1]])


class _Branch:
    """Stands in for a block's method `branch`; in a copy of the block the method is back."""

    def __init__(self, block: ResidualBlock, compiled: Callable):
        self.block = weakref.ref(block)  # no cycle, which would keep a network's memory for longer
        self.compiled = compiled

    def __call__(self, x: Tensor) -> Tensor:
        return self.compiled(self.block(), x)

    def __reduce__(self) -> tuple:
        return _plain, (self.block(),)


def _plain(block: ResidualBlock) -> Callable:
    return MethodType(type(block).branch, block)


def check_compiler(device: torch.device) -> None:
    """Compiles a function of one operation for `device`.

    Raises:
        ValueError: that fails, with what torch says: it needs a C++ compiler (CPU) or Triton
            (CUDA).
    """
    try:
        if device.type == "cpu":  # the trial may find its code compiled, in torch's cache on disk
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
        torch.compile(_trial, fullgraph=True)(torch.zeros(64, device=device))
    except Exception as error:
        raise ValueError(
            f"compile must be null on this machine, where torch cannot compile, got branches: "
            f"{_reason(error)}"
        ) from error


def _trial(x: Tensor) -> Tensor:
    return x + 1
