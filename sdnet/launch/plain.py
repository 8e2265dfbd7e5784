"""The class that a run's weights are for once its gates are gone: torchvision's, timm's or ours."""

import importlib
import inspect
from pydoc import locate
from typing import Any

from torch import nn

from sdnet.launch import build
from sdnet.models.resnet import ResNet
from sdnet.models.schedules import Constant

GATING = ("granularity", "rescale")  # a network that keeps every block needs neither
OF_TIMM, OF_TORCHVISION = "sdnet.models.zoo.timm_model", "sdnet.models.zoo.torchvision_model"
IMAGENET = "sdnet.models.resnet.resnet_imagenet"
TORCHVISIONS = {"stem": "imagenet", "order": "post", "activation": "relu", "shortcut": "projection"}
HANDED_ON = ("sdnet.models.resnet.", "sdnet.models.blocks.", "sdnet.models.schedules.")  # by sdnet


def plain_network(
    config: dict[str, Any], num_classes: int, in_channels: int
) -> tuple[str, nn.Module]:
    """The call that makes a network for a run's folded weights, and one, not yet with them.

    Args:
        config: that of a run whose own network was built: what it names is allowed.
    """
    node = {k: v for k, v in config["model"].items() if k not in ("name", *GATING)}
    target, options = node.pop("_target_"), dict(node.get("options") or {})
    given = {"num_classes": num_classes, "in_channels": in_channels}
    if target == OF_TIMM:
        options |= {"num_classes": num_classes, "in_chans": in_channels}
        return _called("timm", "create_model", node["arch"], **options)
    if target == OF_TORCHVISION:
        return _called("torchvision.models", node["arch"], **options, num_classes=num_classes)
    if target == IMAGENET and in_channels == 3 and TORCHVISIONS.items() <= node.items():
        return _called("torchvision.models", f"resnet{node['depth']}", num_classes=num_classes)
    model = build.build_model(config, **given, schedule=Constant())
    defaults = _defaults(locate(target))
    if isinstance(model, ResNet):
        defaults = _defaults(ResNet) | defaults
    else:
        given["schedule"] = {"_target_": "sdnet.models.schedules.Constant"}
    defaults.pop("num_classes", None)  # that is always said
    told = {k: v for k, v in (node | given).items() if k not in defaults or defaults[k] != v}
    return _text({"_target_": target} | told), model


def _called(module: str, name: str, *args: Any, **kwargs: Any) -> tuple[str, nn.Module]:
    given = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
    return f"{module}.{name}({given})", getattr(importlib.import_module(module), name)(
        *args, **kwargs
    )


def _defaults(called: Any) -> dict[str, Any]:
    parameters = inspect.signature(called).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _text(node: Any) -> str:
    """What a part of a configuration means, in Python."""
    if not isinstance(node, dict) or "_target_" not in node:
        return repr(node)
    name = node["_target_"]
    if name.startswith(HANDED_ON):
        name = f"sdnet.{name.rpartition('.')[2]}"
    given = [f"{k}={_text(v)}" for k, v in node.items() if not k.startswith("_")]
    if not node.get("_partial_"):
        return f"{name}({', '.join(given)})"
    return f"functools.partial({', '.join([name, *given])})" if given else name
