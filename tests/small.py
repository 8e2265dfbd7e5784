"""A run on a few small images, through `build_trainer`."""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest

from sdnet.data.split import Split
from sdnet.data.splits import Data, Normalization
from sdnet.launch import build
from sdnet.runs.folder import RunFolder
from sdnet.training.distributed import ALONE
from tests.config.composed import composed

SMALL = ["model.depth=8", "schedule=uniform", "trainer.device=cpu", "trainer.threads=1"]
SMALL += ["trainer.batch_size=8", "trainer.epochs=2"]
_composed = cache(composed)


def _split(count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return Split(images, np.arange(count) % 10)


@pytest.fixture
def data():
    """20 images for training, 6 for validation, 9 for test; of eleven classes one has no image."""
    normalization = Normalization(np.float32([100]), np.float32([50]))
    parts = _split(20, 0), _split(6, 1), _split(9, 2)
    return Data(*parts, [str(label) for label in range(11)], normalization)


@pytest.fixture
def small(tmp_path, monkeypatch, data):
    """Makes a trainer for two epochs of 8, 8 and 4 images; each block survives with 1/2."""

    def make(*overrides, folder="run", world=ALONE, at_data=lambda: None):
        config = deepcopy(_composed(*SMALL, *overrides))
        monkeypatch.setattr(build, "build_data", lambda config, listing=False: at_data() or data)
        run = RunFolder(tmp_path / folder)
        if not run.holds_run():
            run.create(config, {})
        return build.build_trainer(config, run if world.is_main else None, world)

    return make
