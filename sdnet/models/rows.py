"""Rows of a batch: what a `subset` gate's branch is run on, and where its result goes."""

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (k,) of x (N, ...), in the memory format of x."""
    there, back = _axes_in_memory(x)
    return x.permute(there).index_select(0, rows).permute(back)


def add_rows(x: Tensor, branch: Tensor, rows: Tensor, weight: float) -> Tensor:
    """x (N, ...) plus `weight` times `branch` (k, ...) in the rows (k,), all different."""
    there, back = _axes_in_memory(x)
    branch = branch.to(x.dtype).permute(there)
    return x.permute(there).index_add(0, rows, branch, alpha=weight).permute(back)


def _axes_in_memory(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order of a tensor's axes in memory, and the way back.

    torch's functions of rows keep channels_last only where they see it as (N, H, W, C).
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1), (0, 3, 1, 2)
    same = tuple(range(x.ndim))
    return same, same
