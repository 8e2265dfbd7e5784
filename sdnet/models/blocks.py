"""Residual blocks with stochastic depth: H_l = ReLU(b_l f_l(H_{l-1}) + id(H_{l-1})).

The gate b_l weights the branch f_l and nothing else: never the skip path, never the sum.
Parameters carry torchvision's names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdnet.models.checks import check_choice
from sdnet.models.fast import fused
from sdnet.models.gates import Gated
from sdnet.models.rows import add_rows, split_rows

ACTIVATIONS = {"relu": F.relu, "silu": F.silu}
ORDERS = ("post", "pre")
SHORTCUTS = ("pad", "subsample", "projection")


def norm_activate(bn: nn.Module, x: Tensor, activation: str) -> Tensor:
    """The activation, by its name, of bn(x)."""
    return fused.norm_relu(bn, x) if activation == "relu" else ACTIVATIONS[activation](bn(x))


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (at stride 1), without bias: a BatchNorm follows it."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


class PadShortcut(nn.Module):
    """Option A of He et al. (2015): no parameters; new channels are zero.

    The size is reduced by a 2x2 average pool (Huang et al. 2016), or with `subsample=True` by
    taking every second pixel, as their code did until 2017.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, subsample: bool):
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"shortcut pad and subsample can add channels but not remove them, got "
                f"{in_channels} -> {out_channels}; use shortcut=projection"
            )
        self.new_channels = out_channels - in_channels
        self.stride = stride
        self.subsample = subsample

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            # Odd sizes round up like the strided convolution; border windows average real pixels.
            size = 1 if self.subsample else self.stride
            x = F.avg_pool2d(x, size, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def extra_repr(self) -> str:
        how = "subsample" if self.subsample else "average"
        return f"new_channels={self.new_channels}, stride={self.stride}, {how}"


class ResidualBlock(Gated):
    """What the two kinds of block share: the shortcut, the gate and the sum.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        stride: 1, or 2 to halve the size.
        survival, granularity, rescale: the gate; see `Gated`.
        order: `post` is Conv-BN-ReLU with a ReLU after the sum (He et al. 2015; the paper),
            `pre` is BN-ReLU-Conv with nothing after it (He et al. 2016).
        activation: `relu` or `silu`.
        shortcut: where the shape changes, `pad` or `subsample` (see `PadShortcut`) or
            `projection` (1x1 convolution, with BatchNorm in `post` order). Where it does not,
            the shortcut is the identity.
    """

    num_convs: int  # layers a block adds to the depth that a network is named by
    expansion: int  # output channels over the width of the stage

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        survival: float = 1.0,
        order: str = "post",
        activation: str = "relu",
        shortcut: str = "pad",
        granularity: str = "batch",
        rescale: str = "eval",
    ):
        super().__init__(survival, granularity, rescale)
        self.order = check_choice("order", order, ORDERS)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("shortcut", shortcut, SHORTCUTS)
        if out_channels % self.expansion:
            raise ValueError(
                f"out_channels must be divisible by {self.expansion} for {type(self).__name__}, "
                f"got {out_channels}"
            )
        self._build_branch(in_channels, out_channels, stride)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            if shortcut == "projection":
                layers: list[nn.Module] = [conv(in_channels, out_channels, 1, stride)]
                if order == "post":
                    layers.append(nn.BatchNorm2d(out_channels))
                self.downsample = nn.Sequential(*layers)
            else:
                subsample = shortcut == "subsample"
                self.downsample = PadShortcut(in_channels, out_channels, stride, subsample)
        # Whoever knows that the input is never negative says so (see `ResNet`): then a closed
        # gate beside an identity shortcut leaves the input as it is.
        self.rectified_input = False

    def _build_branch(self, in_channels: int, out_channels: int, stride: int) -> None:
        raise NotImplementedError

    def _layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The branch's (convolution, normalization) pairs in order."""
        return [
            (getattr(self, f"conv{i}"), getattr(self, f"bn{i}"))
            for i in range(1, self.num_convs + 1)
        ]

    def branch(self, x: Tensor) -> Tensor:
        """f_l(x): (N, in_channels, H, W) -> (N, out_channels, H/stride, W/stride)."""
        if self.order == "pre":
            for conv_i, bn in self._layers():
                x = conv_i(norm_activate(bn, x, self.activation))
            return x
        x, last_bn = self._before_last_norm(x)
        return last_bn(x)

    def _before_last_norm(self, x: Tensor) -> tuple[Tensor, nn.BatchNorm2d]:
        """Order `post`: f_l(x) but for its last BatchNorm, and that."""
        *inner, (last_conv, last_bn) = self._layers()
        for conv_i, bn in inner:
            x = norm_activate(bn, conv_i(x), self.activation)
        return last_conv(x), last_bn

    def shortcut(self, x: Tensor) -> Tensor:
        """id(x), or what stands for it where the shape changes."""
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        weight, rows = self.branch_weight(x)
        if rows is not None and isinstance(weight, float):
            x, taken = split_rows(x, rows)
            branch = self.branch(taken)
            return self._finish(add_rows(self.shortcut(x), branch, rows, weight))
        if not isinstance(weight, float):
            return self._finish(self.shortcut(x) + self.branch(x) * weight)
        if weight and self._fused():
            x_last, last_bn = self._before_last_norm(x)
            return fused.norm_add_relu(last_bn, x_last, self.shortcut(x), weight)
        if weight:
            return self._finish(torch.add(self.shortcut(x), self.branch(x), alpha=weight))
        return self.closed(x)

    def closed(self, x: Tensor) -> Tensor:
        """The block where its gate is closed: nothing of the branch runs."""
        out = self.shortcut(x)
        if self.closed_is_identity() or self.order == "pre":
            return out
        return ACTIVATIONS[self.activation](out)  # not in place: `out` can be `x` or a view of it

    def closed_is_identity(self) -> bool:
        """Whether a closed gate gives the very input back: ReLU leaves a rectified one as it is."""
        kept = self.order == "pre" or (self.rectified_input and self.activation == "relu")
        return self.downsample is None and kept

    def _fused(self) -> bool:
        """Whether the last BatchNorm is computed with the sum and the ReLU; see `fused`."""
        ours = getattr(self.branch, "__func__", None) is ResidualBlock.branch  # nobody's own
        relu_last = self.order == "post" and self.activation == "relu"
        return fused.enabled() and self.training and relu_last and ours

    def _finish(self, total: Tensor) -> Tensor:
        return total if self.order == "pre" else self._activate(total)

    def _activate(self, x: Tensor) -> Tensor:
        # Only ever on a tensor just made here, so ReLU may overwrite it.
        return F.relu(x, inplace=True) if self.activation == "relu" else F.silu(x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}, activation={self.activation}"


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    num_convs = 2
    expansion = 1

    def _build_branch(self, in_channels: int, out_channels: int, stride: int) -> None:
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels if self.order == "post" else in_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions; the middle one is a quarter as wide and carries the stride.

    `out_channels` are those of the block's output, four times the width of the middle.
    """

    num_convs = 3
    expansion = 4

    def _build_branch(self, in_channels: int, out_channels: int, stride: int) -> None:
        width = out_channels // self.expansion
        post = self.order == "post"
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width if post else in_channels)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels if post else width)
