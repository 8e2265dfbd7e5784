"""What BatchNorm keeps between steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Its layers of BatchNorm, of any number of dimensions."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def statistics_restored(model: nn.Module) -> Iterator[None]:
    """After it BatchNorm's running statistics, and counts of batches, are what they were."""
    kept = [(b, b.clone()) for m in batch_norms(model) for b in m.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
