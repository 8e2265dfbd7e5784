"""The tensors of a network as `World.reduce` sends them: found once, in the order of memory."""

from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sdnet.models.norms import batch_norms

Parts = tuple[list[nn.Parameter], list[_BatchNorm]]
_known: WeakKeyDictionary[nn.Module, Parts] = WeakKeyDictionary()  # which keeps no network


def parts_of(model: nn.Module) -> Parts:
    """The parameters of a network, and its layers that keep statistics; asked for in each step."""
    if model not in _known:
        norms = [m for m in batch_norms(model) if m.track_running_stats]
        _known[model] = list(model.parameters()), norms
    return _known[model]


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """A view of `tensor` whose axes come in the order in which those of `like` lie in memory."""
    return tensor.permute(sorted(range(like.ndim), key=like.stride, reverse=True))
