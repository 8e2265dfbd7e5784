from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sdnet.data import digits as digits_module
from sdnet.data.digits import digits


def test_digits_have_a_fixed_stratified_test_part_of_real_images():
    source = digits()
    assert source.train[:].shape == (1437, 16, 16, 1)
    assert source.test[:].shape == (360, 16, 16, 1)
    assert source.train[:].max() > 200 and source.train[:].dtype == np.uint8
    counts = np.bincount(source.test.labels)
    assert len(counts) == 10 and counts.min() >= 34 and counts.max() <= 38
    assert (digits().test[:] == source.test[:]).all()


def test_digits_are_enlarged_bilinearly():
    images = np.round(load_digits().images * (255 / 16))
    for size in (8, 13, 16):
        source = digits(size)
        for part in (source.train, source.test):
            grey = torch.from_numpy(images[part.indices])[:, None]
            expected = torch.nn.functional.interpolate(grey, (size, size), mode="bilinear")
            assert np.abs(part[:][..., 0] - expected[:, 0].numpy()).max() <= 1  # rounded twice
    assert digits().test.shape == (16, 16, 1)
    for wrong in (7, 8.0, "8", None, True, 513):
        with pytest.raises(ValueError, match=f"^size must be .* 8 to 512, got {wrong!r}"):
            digits(wrong)


@pytest.mark.parametrize("moved", [None, "no package", "no file"])
def test_digits_are_what_scikit_learn_loads_and_splits(moved, monkeypatch, tmp_path):
    if moved:  # the file is not where it was
        spec = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
        found = {"no package": None, "no file": spec}[moved]
        monkeypatch.setattr(digits_module, "find_spec", lambda name: found)
    bunch = load_digits()
    rows = train_test_split(np.arange(1797), test_size=0.2, stratify=bunch.target, random_state=0)
    source = digits(size=8)
    for part, expected in zip((source.train, source.test), rows, strict=True):
        assert (part.indices == expected).all() and (part.labels == bunch.target[expected]).all()
        assert part.labels.dtype == np.int64 and part.images.dtype == np.uint8
        assert (part[:][..., 0] == np.round(bunch.images[expected] * (255 / 16))).all()
    assert source.classes == [str(name) for name in bunch.target_names]
