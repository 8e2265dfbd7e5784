"""Rows of a batch: what a `subset` gate's branch is run on, and where its result goes.

torch's own index_select and index_add would do; but their backward passes fill and add whole
batches of zeros, and what they give in channels_last is a view, which costs copies where it is
overwritten. On small networks that is more than the rows that are left out save.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def split_rows(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, ...) itself, for the shortcut, and its rows (k,) for the branch."""
    return _Split.apply(x, rows)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (k,) of x (N, ...), all different, in the memory format of x."""
    return _Split.apply(x, rows)[1]


def add_rows(x: Tensor, branch: Tensor, rows: Tensor, weight: float) -> Tensor:
    """x (N, ...) plus `weight` times `branch` (k, ...) in the rows (k,), all different."""
    return _Add.apply(x, branch.to(x.dtype), rows, weight)


class _Split(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        ctx.set_materialize_grads(False)
        ctx.like = x.shape
        return x, _taken(x, rows)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_rows: Tensor | None) -> tuple:
        (rows,) = ctx.saved_tensors
        if of_rows is None:
            return of_x, None
        if of_x is None:
            there, back = _axes_in_memory(of_rows)
            shape = [ctx.like[axis] for axis in there]
            of_x = of_rows.new_zeros(shape).permute(back)
        return _Add.apply(of_x, of_rows, rows, 1.0), None


class _Add(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, rows: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.weight = weight
        there, _ = _axes_in_memory(x)
        total = x.clone()
        total.permute(there).index_add_(0, rows, branch.permute(there), alpha=weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (rows,) = ctx.saved_tensors
        of_branch = take_rows(grad, rows) if ctx.needs_input_grad[1] else None
        if of_branch is not None and ctx.weight != 1.0:
            of_branch = of_branch * ctx.weight
        return grad, of_branch, None, None


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    there, back = _axes_in_memory(x)
    return x.permute(there).index_select(0, rows).permute(back)


def _axes_in_memory(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order of a tensor's axes in memory, and the way back.

    torch's functions of rows keep channels_last only where they see it as (N, H, W, C).
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1), (0, 3, 1, 2)
    same = tuple(range(x.ndim))
    return same, same
