"""The gates of a step, drawn by hand."""

import hashlib
import json

import numpy as np
import pytest

from tests.small import data, small  # noqa: F401


@pytest.fixture
def uniform():
    """`uniform(seed, step, shape)`: numbers that are below the survival of open gates."""

    def draw(seed, step, shape):
        text = json.dumps([seed, "gates", step]).encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        key = int.from_bytes(digest, "little")
        return np.random.Generator(np.random.Philox(key=key)).random(shape)

    return draw
