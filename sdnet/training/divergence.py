"""Where in a network numbers stop being finite."""

import torch
from torch import Tensor, nn

from sdnet.models.layout import branch_modules
from sdnet.training import device as devices


@torch.no_grad()
def first_not_finite(model: nn.Module, images: Tensor | None, precision: str = "fp32") -> str:
    """What to say of the first values that are not finite: images, outputs in depth, gradients.

    Args:
        images: are computed once more, under the gates that are set.
    """
    if images is None:
        return "no step was computed"
    if not images.isfinite().all():
        return "the images hold values that are not finite"
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def look(module: nn.Module, args: tuple, output: object, name: str = name) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        hooks.append(module.register_forward_hook(look))
    try:
        with devices.autocast(images.device, precision):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"the first values that are not finite come out of {_place(model, found[0])}"
    for name, parameter in reversed(list(model.named_parameters())):  # as backward goes
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the first gradient that is not finite is that of {_place(model, name)}"
    return "its outputs and gradients are finite"


def _place(model: nn.Module, name: str) -> str:
    """`block 3 of 9 (layer2.0.conv1)`; the name alone of what is in no block."""
    branches = branch_modules(model).values()
    for number, paths in enumerate(branches, start=1):
        if any(f"{name}.".startswith(f"{path}.") for path in paths):
            return f"block {number} of {len(branches)} ({name})"
    return name or "the network"
