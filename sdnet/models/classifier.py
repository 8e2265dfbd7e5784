"""The layer of a network that gives its logits."""

from torch import nn

NAMES = ("fc", "classifier", "head", "heads")  # sdnet's and torchvision's


def classifier_names(model: nn.Module) -> list[str]:
    """Names of the parameters of a network's classifier, its last linear layer.

    timm's networks tell which it is; in others it is the last one in what has a name of `NAMES`.
    Empty where there is none.
    """
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()  # type: ignore[operator]
        layers = found if isinstance(found, tuple | list) else [found]
    else:
        top = next((getattr(model, name) for name in NAMES if hasattr(model, name)), nn.Identity())
        layers = [m for m in top.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    inside = {p for m in layers if isinstance(m, nn.Module) for p in m.parameters()}
    return [name for name, parameter in model.named_parameters() if parameter in inside]
