"""The one source of randomness: a generator for every (seed, purpose, step).

A key, not a state, decides what is drawn, so a resumed run needs only its step counter,
and drawing more for one purpose never shifts another.
"""

import hashlib
import json
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _digest(seed: int, key: tuple, size: int) -> int:
    text = json.dumps([seed, *key], default=operator.index).encode()  # whole numbers of any kind
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A counter-based generator of its own for `(seed, *key)`, e.g. `generator(0, "gates", step)`.

    Philox under a 128-bit BLAKE2b digest of the key: streams of different keys are independent.
    """
    return np.random.Generator(np.random.Philox(key=_digest(seed, key, 16)))


@contextmanager
def torch_seeded(seed: int, *key: str | int) -> Iterator[None]:
    """Within the block, torch's global CPU generator is seeded by `(seed, *key)`; then restored."""
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone, which reads 32 bits of its seed.
        torch.default_generator.manual_seed(_digest(seed, key, 4))
        yield
