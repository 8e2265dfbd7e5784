"""Multiply-adds of a network, layer by layer, and what of them a closed gate saves."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdnet.models.checks import shown
from sdnet.models.gates import Gated
from sdnet.models.layout import branch_modules


def _of_weight(layer: Any, inputs: tuple, output: Tensor) -> int:
    return output.numel() * layer.weight[0].numel()


def _of_attention(layer: Any, inputs: tuple, output: tuple) -> int:
    """The four projections; the products of queries, keys and values are not counted anywhere."""
    query, key, value = inputs[:3]
    width = layer.embed_dim
    return 2 * query.numel() * width + key.numel() * width + value.numel() * width


def _of_windows(layer: Any, inputs: tuple, output: Tensor) -> int:
    """torchvision's Swin: it hands the weights of its two linear layers to a function."""
    return inputs[0].numel() * layer.qkv.out_features + output.numel() * layer.proj.in_features


COUNTED: dict[type, Callable[..., int]] = {
    nn.Conv1d: _of_weight,
    nn.Conv2d: _of_weight,
    nn.Conv3d: _of_weight,
    nn.Linear: _of_weight,
    nn.MultiheadAttention: _of_attention,
}
BY_NAME = {"ShiftedWindowAttention": _of_windows, "ShiftedWindowAttentionV2": _of_windows}


class Macs:
    """Multiply-adds per image of the layers in `COUNTED`, in one forward pass at full depth.

    One image is computed on the model's device, on a copy; on the meta device, nothing.

    Args:
        input_shape: (C, H, W) of an image.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]):
        # By hooks: torch's FlopCounterMode gives the same numbers, but like most operations on the
        # meta device it imports torch's compiler first, which takes longer than the image.
        self.of_layer: Counter[str] = Counter()
        self.model = model
        copied = copy.deepcopy(model).eval()
        for name, module in copied.named_modules():
            count = next((c for kind, c in COUNTED.items() if isinstance(module, kind)), None)
            count = BY_NAME.get(type(module).__name__, count)
            if count is not None:
                module.register_forward_hook(self._hook(name, count))
        with torch.no_grad():
            copied(torch.zeros(1, *input_shape, device=next(model.parameters()).device))

    def _hook(self, name: str, count: Callable[..., int]) -> Callable:
        def hook(layer: nn.Module, inputs: tuple, output: Any) -> None:
            self.of_layer[name] += count(layer, inputs, output)

        return hook

    @property
    def total(self) -> int:
        return self.of_layer.total()

    def below(self, name: str) -> int:
        """Those of a module and all in it."""
        prefix = f"{name}." if name else ""
        return sum(n for layer, n in self.of_layer.items() if f"{layer}.".startswith(prefix))

    def of_gates(self) -> dict[Gated, tuple[int, int]]:
        """For each gated module those that it saves when closed, and those of the shortcut.

        A block of sdnet calls its shortcut `downsample`; all else in it is the branch.
        """
        found: dict[Gated, tuple[int, int]] = {}
        for gate, paths in branch_modules(self.model).items():
            shortcut = sum(self.below(f"{path}.downsample".lstrip(".")) for path in paths)
            shortcut = shortcut if isinstance(getattr(gate, "downsample", None), nn.Module) else 0
            found[gate] = sum(map(self.below, paths)) - shortcut, shortcut
        return found


def shares_of(model: nn.Module, input_shape: Sequence[int]) -> dict[Gated, float]:
    """For each gated module the share of the network's multiply-adds that it saves when closed.

    Raises:
        ValueError: the network does not compute an input of that shape.
    """
    try:
        macs = Macs(model, input_shape)
    except Exception as error:  # whatever a network raises
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"input_shape must be (C, H, W) of an input that {type(model).__name__} computes, "
            f"got {shown(input_shape)}: {found}"
        ) from error
    return {gate: branch / macs.total for gate, (branch, _) in macs.of_gates().items()}
