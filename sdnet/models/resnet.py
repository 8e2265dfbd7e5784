"""Residual networks with stochastic depth: a stem, stages of blocks, a linear classifier.

`resnet_cifar` and `resnet_imagenet` are the two families of He et al. (2015, 2016), `tiny_resnet`
a small network for a notebook. Parameters carry torchvision's names throughout.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdnet.models.blocks import (
    ACTIVATIONS,
    ORDERS,
    BasicBlock,
    Bottleneck,
    ResidualBlock,
    conv,
    norm_activate,
)
from sdnet.models.checks import check_choice, check_count, check_drop_rate, check_each, shown, whole
from sdnet.models.norms import batch_norms
from sdnet.models.schedules import Constant, LinearDecay, survival_of

STEMS = ("cifar", "imagenet")
INITS = ("fan_in", "fan_out")
BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
IMAGENET_STAGES = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def make_stage(
    block: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    num_blocks: int,
    stride: int = 1,
    *,
    survival: Sequence[float] | None = None,
    drop_rates: Sequence[float] | None = None,
    **options: Any,
) -> nn.Sequential:
    """A stage: `num_blocks` blocks, of which the first changes the channels and the size.

    Args:
        block: called as `block(in_channels, out_channels, stride, survival=p, **options)`.
        survival, drop_rates: a value per block in order of depth. Exactly one of the two; a drop
            rate d is the survival probability 1 - d.

    Raises:
        ValueError: both or neither of `survival` and `drop_rates`, a wrong number of values, a
            value out of range, or `num_blocks` below 1.
    """
    num_blocks = check_count("num_blocks", num_blocks)
    if survival is not None and drop_rates is None:
        name, given = "survival", survival
    elif drop_rates is not None and survival is None:
        name, given = "drop_rates", drop_rates
    else:
        raise ValueError("give exactly one of survival= and drop_rates=")
    given = check_each(name, given, num_blocks, "block")
    if name == "drop_rates":
        given = [1.0 - check_drop_rate(name, d) for d in given]
    blocks = []
    for i, p in enumerate(given):
        first = i == 0
        blocks.append(
            block(
                in_channels if first else out_channels,
                out_channels,
                stride if first else 1,
                survival=p,
                **options,
            )
        )
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """A residual network for images (N, in_channels, H, W) that returns logits (N, num_classes).

    Args:
        block: `BasicBlock`, `Bottleneck`, or a callable that takes what `make_stage` hands on.
        stage_blocks: number of blocks per stage.
        stage_widths: width per stage; a block's output has `width * block.expansion` channels.
        stem: `cifar` (3x3 convolution) or `imagenet` (7x7 at stride 2, then a 3x3 max pool).
        schedule: survival schedule over all blocks (`sdnet.models.schedules`).
        order, activation, shortcut, granularity, rescale: see `ResidualBlock`. With order `pre`
            the stem is a convolution alone and a BatchNorm and activation follow the last stage.
        init: normal initialisation of the convolutions with variance 2/fan_in (the paper) or
            2/fan_out (torchvision).

    The attribute `checkpoint_blocks`, None at first, may be set to the size of the groups of
    consecutive blocks whose activations are recomputed in the backward pass instead of kept: less
    memory for another forward pass; gradients and BatchNorm statistics stay the same.

    Raises:
        ValueError: naming the argument that is out of range and what is allowed.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        stage_blocks: Sequence[int],
        stage_widths: Sequence[int],
        stem: str = "cifar",
        schedule: Callable[..., list[float]] | None = None,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        order: str = "post",
        activation: str = "relu",
        shortcut: str = "pad",
        granularity: str = "batch",
        rescale: str = "eval",
        init: Literal["fan_in", "fan_out"] = "fan_in",
    ):
        super().__init__()
        if not stage_blocks or len(stage_blocks) != len(stage_widths):
            raise ValueError(
                f"stage_blocks and stage_widths must have one entry per stage, one stage or more, "
                f"got {len(stage_blocks)} and {len(stage_widths)}"
            )
        stage_blocks = [check_count("stage_blocks", n) for n in stage_blocks]
        stage_widths = [check_count("stage_widths", n) for n in stage_widths]
        num_classes = check_count("num_classes", num_classes)
        in_channels = check_count("in_channels", in_channels)
        check_choice("stem", stem, STEMS)
        check_choice("order", order, ORDERS)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("init", init, INITS)
        self.stage_blocks = tuple(stage_blocks)
        self.schedule = Constant() if schedule is None else schedule
        survival = survival_of(self.schedule, self.stage_blocks)
        expansion = _class_of(block).expansion

        channels = stage_widths[0]
        self.conv1 = (
            conv(in_channels, channels, 3)
            if stem == "cifar"
            else nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(channels) if order == "post" else None
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else None

        options: dict[str, Any] = {
            "order": order,
            "activation": activation,
            "shortcut": shortcut,
            "granularity": granularity,
            "rescale": rescale,
        }
        for name in options:
            if name in getattr(block, "keywords", {}):
                raise ValueError(f"{name} must be given to the network, not to its block")
        self.layers = [f"layer{i}" for i in range(1, len(stage_blocks) + 1)]
        first = 0
        for i, (num_blocks, width) in enumerate(zip(stage_blocks, stage_widths, strict=True)):
            stage = make_stage(
                block,
                channels,
                width * expansion,
                num_blocks,
                1 if i == 0 else 2,
                survival=survival[first : first + num_blocks],
                **options,
            )
            for block_after in stage[1:]:  # it gets what the ReLU of the one before let through
                if isinstance(block_after, ResidualBlock):
                    block_after.rectified_input = True
            self.add_module(self.layers[i], stage)
            first += num_blocks
            channels = width * expansion

        self.checkpoint_blocks: int | None = None
        self.bn_last = nn.BatchNorm2d(channels) if order == "pre" else None
        self.activation = activation
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=init, nonlinearity="relu")

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order of depth."""
        return [block for name in self.layers for block in getattr(self, name)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.layers:
            x = self._stage(getattr(self, name), x)
        return self.head(x)

    def stem(self, x: Tensor) -> Tensor:
        """What comes before the first block."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = norm_activate(self.bn1, x, self.activation)
        return x if self.maxpool is None else self.maxpool(x)

    def head(self, x: Tensor) -> Tensor:
        """What comes after the last block: logits (N, num_classes)."""
        if self.bn_last is not None:
            x = norm_activate(self.bn_last, x, self.activation)
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def _stage(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        size = self.checkpoint_blocks
        if not size or not self.training or not torch.is_grad_enabled():
            return stage(x)
        for start in range(0, len(stage), size):
            group = stage[start : start + size]
            contexts = partial(_forward_and_recomputation, group)
            x = checkpoint(group, x, use_reentrant=False, context_fn=contexts)
        return x


def _forward_and_recomputation(module: nn.Module) -> tuple:
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keeps the running statistics of BatchNorm: the forward pass has moved them already."""
    norms = [m for m in batch_norms(module) if m.track_running_stats]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        # Not track_running_stats=False: then fewer tensors are saved than in the forward.
        count = m.num_batches_tracked
        m.momentum, m.num_batches_tracked = 0.0, None if count is None else torch.zeros_like(count)
    try:
        yield
    finally:
        for m, (momentum, count) in zip(norms, before, strict=True):
            m.momentum, m.num_batches_tracked = momentum, count


def _class_of(block: Callable) -> Any:
    return block.func if isinstance(block, partial) else block


def resnet_cifar(
    depth: int,
    block: str | Callable[..., nn.Module] = "basic",
    num_classes: int = 10,
    schedule: Callable[..., list[float]] | None = None,
    *,
    stem: str = "cifar",
    **options: Any,
) -> ResNet:
    """The CIFAR family: three stages of n blocks with widths 16, 32 and 64, option A shortcuts.

    Args:
        depth: 6n+2 with basic blocks (20, 32, 44, 56, 110, 1202), 9n+2 with bottlenecks (164).
        block: `basic`, `bottleneck`, or a block class or partial with `num_convs` and `expansion`.
        options: as in `ResNet`.

    Raises:
        ValueError: a depth that is not of that form, or an unknown block.
    """
    if isinstance(block, str):
        block = BLOCKS[check_choice("block", block, tuple(BLOCKS))]
    layers = 3 * _class_of(block).num_convs
    n, rest = divmod((whole(depth) or 0) - 2, layers)
    if rest or n < 1:
        raise ValueError(
            f"depth must be {layers}n+2 for {_class_of(block).__name__} "
            f"({layers + 2}, {2 * layers + 2}, {3 * layers + 2}, ...), got {shown(depth)}"
        )
    return ResNet(
        block, (n, n, n), (16, 32, 64), stem, schedule, num_classes=num_classes, **options
    )


def resnet_imagenet(
    depth: int,
    num_classes: int = 1000,
    schedule: Callable[..., list[float]] | None = None,
    *,
    stem: str = "imagenet",
    shortcut: str = "projection",
    init: Literal["fan_in", "fan_out"] = "fan_out",
    **options: Any,
) -> ResNet:
    """The ImageNet family, torchvision's networks: depth 18, 34 (basic), 50, 101, 152 (bottleneck).

    A torchvision `state_dict` loads strictly. Its logits are the same with the defaults, and with a
    schedule where `rescale` is `train` or `none`; `eval` multiplies each branch by its survival.
    Options as in `ResNet`.
    """
    stages = IMAGENET_STAGES.get(whole(depth) or 0)
    if stages is None:
        allowed = ", ".join(map(str, IMAGENET_STAGES))
        raise ValueError(f"depth must be one of {allowed}, got {shown(depth)}")
    block, stage_blocks = stages
    options |= {"num_classes": num_classes, "shortcut": shortcut, "init": init}
    return ResNet(block, stage_blocks, (64, 128, 256, 512), stem, schedule, **options)


def tiny_resnet(
    num_classes: int = 100,
    sd_max: float = 0.2,
    blocks: Sequence[int] = (2, 2, 2),
    activation: str = "relu",
    *,
    schedule: Callable[..., list[float]] | None = None,
    shortcut: str = "projection",
    granularity: str = "sample",
    rescale: str = "train",
    **options: Any,
) -> ResNet:
    """A small three-stage network for CIFAR images in the conventions of timm and torchvision.

    Widths 32, 64 and 128, projection shortcuts, per-sample masks and inverted scaling. The drop
    rate rises linearly from 0 at the first block to `sd_max`, 0 <= sd_max < 1, at the last of all
    blocks, unless a `schedule` is given.
    """
    if not isinstance(blocks, list | tuple) or len(blocks) != 3:
        raise ValueError(f"blocks must hold 3 numbers, one per stage, got {shown(blocks)}")
    if schedule is None:
        p_L = 1.0 - check_drop_rate("sd_max", sd_max)
        schedule = LinearDecay(p_L=p_L, rule="timm")
    options |= {"num_classes": num_classes, "activation": activation, "shortcut": shortcut}
    options |= {"granularity": granularity, "rescale": rescale}
    return ResNet(BasicBlock, blocks, (32, 64, 128), "cifar", schedule, **options)
