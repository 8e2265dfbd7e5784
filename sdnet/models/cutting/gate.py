"""The gate that stands in a foreign network where its drop-path module was."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdnet.models.gates import Gated
from sdnet.models.rows import add_rows, split_rows, take_rows


class Gate(Gated):
    """A gate for a residual branch of somebody else's block; see `sdnet.skip_branches`.

    The block, rewritten, calls `add_branch` where its sum was. It has no parameters.

    Args:
        survival, granularity, rescale: see `Gated`.
        passes: the module is called where it stands, in the branch's midst, and gives back what it
            gets; the sum is in another module. Else a call in training is an error: nobody weights.
        kept: what stood here before.
    """

    def __init__(
        self,
        survival: float,
        granularity: str,
        rescale: str,
        passes: bool = False,
        kept: Any = None,
    ):
        super().__init__(survival, granularity, rescale)
        self.passes = passes
        self.kept = (kept,)  # in a tuple: no child
        self.compiled: Callable | None = None  # gives what runs instead of a branch's function

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.passes:
            raise RuntimeError(
                "this gate is called as a module, by code that sdnet.skip_branches did not "
                "rewrite: its branch would be added without a weight"
            )
        return x

    def add_branch(
        self,
        shortcut: Tensor,
        branch: Callable[..., Tensor],
        block: nn.Module,
        inputs: tuple[Any, ...],
        with_rows: tuple[bool | None, ...],
        overwritten: bool,
    ) -> Tensor:
        """shortcut + weight * branch(block, *inputs); with a closed gate nothing of it runs.

        Args:
            shortcut: (N, ...).
            inputs: what the branch reads.
            with_rows: which of them have a row for each of the shortcut's, and are cut to the rows
                that a `subset` gate leaves open; None: not known.
            overwritten: whether what is returned may be changed in place. Then it is never the
                shortcut itself, which others may use, and the backward pass.

        Raises:
            ValueError: an input of a `subset` branch without a row for each of the shortcut's, or
                one where that is not known; a sum of another shape than the shortcut.
        """
        branch = self.compiled(branch) if self.compiled else branch
        weight, rows = self.branch_weight(shortcut)
        if isinstance(weight, float) and not weight:
            return shortcut.clone() if overwritten else shortcut
        if rows is None:
            out = self._run(branch, block, inputs)
            if isinstance(weight, float):
                total = torch.add(shortcut, out, alpha=weight)
            else:
                total = shortcut + out * weight
            if not isinstance(total, torch.fx.Proxy) and total.shape != shortcut.shape:
                raise ValueError(
                    f"{type(block).__name__}: its shortcut {tuple(shortcut.shape)} is stretched to "
                    f"{tuple(total.shape)} by the branch: without the branch it would not be"
                )
            return total
        n, whole = len(shortcut), shortcut
        given = []
        for value, has_rows in zip(inputs, with_rows, strict=True):
            if has_rows is None and isinstance(value, Tensor) and value.ndim and len(value) == n:
                raise ValueError(
                    f"{type(block).__name__}: its branch reads another argument of {n} rows, "
                    f"{tuple(value.shape)}, and whether they are the batch's cannot be told: "
                    f"granularity must be batch or sample, got subset"
                )
            if value is whole:
                shortcut, value = split_rows(value, rows)
            elif has_rows:
                value = _rows_of(value, rows, n, block)
            given.append(value)
        out = self._run(branch, block, given)
        both = torch.result_type(shortcut, out)
        out = out.expand(len(rows), *shortcut.shape[1:])
        assert isinstance(weight, float)
        return add_rows(shortcut.to(both), out, rows, weight)

    def _run(
        self, branch: Callable[..., Tensor], block: nn.Module, inputs: Sequence[Any]
    ) -> Tensor:
        given = [value for value in inputs if self.training and isinstance(value, Tensor)]
        before = [_version(value) for value in given]
        out = branch(block, *inputs)
        if [_version(value) for value in given] != before:
            raise ValueError(
                f"{type(block).__name__}: a module of its branch changes the branch's input in "
                f"place, which behind a closed gate would not happen"
            )
        return out


def _rows_of(value: Any, rows: Tensor, n: int, block: nn.Module) -> Any:
    """Rows of a tensor, or of each in a tuple, e.g. the parts of a `chunk`, or in a dict."""
    if isinstance(value, dict):
        return {key: _rows_of(part, rows, n, block) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_rows_of(part, rows, n, block) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0 or len(value) != n:
        raise ValueError(
            f"{type(block).__name__}: its branch reads {tuple(value.shape)} where the batch has "
            f"{n} rows: granularity must be batch or sample, got subset"
        )
    return take_rows(value, rows)


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
