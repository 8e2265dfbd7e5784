"""What the keys of a run come to, written out once more: results must not change with a version."""

import hashlib
import json

import numpy as np
import torch


def digest(size, *key):
    text = json.dumps(list(key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")


def philox(*key):
    """numpy's generator for (seed, purpose, step ...)."""
    return np.random.Generator(np.random.Philox(key=digest(16, *key)))


def torch_seed(*key):
    return torch.manual_seed(digest(4, *key))
