"""Stochastic depth as a function and as modules, for any residual network.

They follow the convention of torchvision and timm: p is the probability to *drop*, and
surviving branches are divided by 1 - p in training (inverted scaling), so evaluation needs none.
A mask is applied to the branch after it was computed; `sdnet.models.blocks` skip the computation.
"""

import torch
from torch import Tensor, nn

from sdnet.models.checks import check_choice, check_drop_rate, shown

MODES = ("row", "batch")


def _check(name: str, p: float, mode: str) -> float:
    check_choice("mode", mode, MODES)
    return check_drop_rate(name, p)


def _check_training(training: bool) -> None:
    if isinstance(training, str):  # torchvision's third argument is the mode
        raise ValueError(f"training must be a boolean, got {shown(training)}; give mode by keyword")


def _check_branch(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a tensor of floating-point numbers, got {got}")


def stochastic_depth(
    x: Tensor, p: float, training: bool = True, mode: str = "row", scale_by_keep: bool = True
) -> Tensor:
    """Drops residual branches at random (Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382).

    Apply it to the output of the branch, never to the skip path: `x + stochastic_depth(f(x), p)`.

    Args:
        x: branch output of shape `(N, ...)`, one dimension or more, of any floating-point type.
        p: probability to drop, 0 <= p < 1.
        training: when false, `x` is returned unchanged.
        mode: `row` draws once per row of the batch, `batch` once for the whole tensor.
        scale_by_keep: divide what survives by `1 - p`, so that the expectation stays `x`.

    Returns:
        A tensor like `x`, or `x` itself when `p == 0` or not training.

    Raises:
        ValueError: `p` outside [0, 1), an unknown `mode`, or an `x` that is not as above.
    """
    if torch.jit.is_scripting():  # which has checked the types, and cannot compile those messages
        assert p >= 0.0 and p < 1.0 and mode in ["row", "batch"]
    else:
        p = _check("p", p, mode)
        _check_training(training)
    if not training or p == 0.0:
        return x
    return _masked(x, 1.0 - p, mode, scale_by_keep)


@torch.fx.wrap  # one call in a traced graph, which draws each time that it is made
def _masked(x: Tensor, keep: float, mode: str, scale_by_keep: bool) -> Tensor:
    if not torch.jit.is_scripting():
        _check_branch(x)
    if x.ndim == 0:
        raise ValueError("x must have one dimension or more, got a scalar")
    rows = x.shape[0] if mode == "row" else 1
    mask = x.new_empty([rows] + [1] * (x.ndim - 1)).bernoulli_(keep)
    if scale_by_keep:
        mask.div_(keep)
    return x * mask


class StochasticDepth(nn.Module):
    """`stochastic_depth` as a module, for the end of a residual branch; arguments as there."""

    def __init__(self, p: float = 0.1, mode: str = "row"):
        super().__init__()
        self.p = _check("p", p, mode)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return stochastic_depth(x, self.p, self.training, self.mode)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode}"


class DropPath(nn.Module):
    """Per-sample stochastic depth under timm's name and signature, except that 1 is refused."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True):
        super().__init__()
        self.drop_prob = _check("drop_prob", drop_prob, "row")
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        return stochastic_depth(x, self.drop_prob, self.training, "row", self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}, scale_by_keep={self.scale_by_keep}"
