"""What BatchNorm keeps between steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_restored(model: nn.Module) -> Iterator[None]:
    """After it BatchNorm's running statistics, and counts of batches, are what they were."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    kept = [(b, b.clone()) for m in norms for b in m.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
