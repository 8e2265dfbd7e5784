"""The tensors of a network as `World.reduce` sends them: found once, in the order of memory."""

from functools import lru_cache

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@lru_cache(maxsize=1)  # for `reduce`, which asks in each step
def parts_of(model: nn.Module) -> tuple[list[nn.Parameter], list[_BatchNorm]]:
    """The parameters of a network, and its layers that keep statistics."""
    modules = (m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats)
    return list(model.parameters()), list(modules)


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """A view of `tensor` whose axes come in the order in which those of `like` lie in memory."""
    return tensor.permute(sorted(range(like.ndim), key=like.stride, reverse=True))
