import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sdnet.analysis.measures import measure
from sdnet.analysis.probes.corruptions import (
    CONSTANTS,
    STRENGTHS,
    corrupt,
    corrupted,
    corruptions,
)
from sdnet.data.sources import image_stream
from sdnet.data.split import Split
from sdnet.data.splits import Normalization
from sdnet.data.streaming import StreamingLoader
from tests.analysis.probes.conftest import compute

SMALL, LARGE = 16, 80


def image(size=SMALL, channels=3, seed=0):
    random = np.random.default_rng(seed)
    waves = gaussian_filter(random.normal(size=(size, size, channels)), (2, 2, 0)) * 300
    return (128 + waves).clip(0, 255).astype(np.uint8)


def made(pixels, kind, strength, seed=0, row=0):
    return corrupt(pixels, row, kind=kind, strength=strength, seed=seed).astype(int)


def jpeg(plane, quality):
    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_each_kind_by_hand(size, channels):
    pixels, large = image(size, channels), size == LARGE
    for strength in STRENGTHS:
        constant = {kind: CONSTANTS[kind][large][strength - 1] for kind in CONSTANTS}
        mean = pixels.mean((0, 1))
        expected = mean + (pixels - mean) * constant["contrast"]
        assert abs(made(pixels, "contrast", strength) - expected).max() <= 0.5 + 1e-6
        sigma = constant["blur"]
        expected = gaussian_filter(pixels.astype(float), (sigma, sigma, 0), mode="mirror")
        assert abs(made(pixels, "blur", strength) - expected).max() <= 1
        quality = constant["JPEG"]
        expected = (
            jpeg(pixels, quality)
            if channels == 3
            else np.stack([jpeg(pixels[..., c].copy(), quality) for c in range(channels)], 2)
        )
        assert (made(pixels, "JPEG", strength) == expected).all()
        flat = np.full((size, size, channels), 128, np.uint8)
        noise = (made(flat, "gaussian noise", strength) - 128) / 255
        assert noise.std() == pytest.approx(constant["gaussian noise"], rel=0.2 if large else 0.15)
        assert abs(noise.mean()) < 5 * constant["gaussian noise"] / np.sqrt(noise.size)


def test_pixels_are_joined_to_fewer_and_larger_ones():
    pixels = image(LARGE)
    found = made(pixels, "pixelation", 5)  # to a quarter of the side
    blocks = pixels.reshape(20, 4, 20, 4, 3).mean((1, 3))
    assert abs(found - blocks.repeat(4, 0).repeat(4, 1)).max() <= 1


@pytest.mark.parametrize("kind", CONSTANTS)
def test_the_strongest_is_furthest_from_the_image_and_noise_keyed_by_seed_and_row(kind):
    pixels = image()
    away = [np.square(made(pixels, kind, s) - pixels.astype(int)).mean() for s in STRENGTHS]
    assert 0 < away[0] < away[-1]
    first = made(pixels, kind, 3, seed=1, row=2)
    others = made(pixels, kind, 3, seed=2, row=2), made(pixels, kind, 3, seed=1, row=3)
    assert (first == made(pixels, kind, 3, seed=1, row=2)).all()
    assert all((first == other).all() != (kind == "gaussian noise") for other in others)


def test_images_that_are_streamed_are_corrupted_like_those_in_memory(tmp_path):
    for row, part in itertools.product(range(4), ("train", "val")):
        path = tmp_path / part / "ab"[row // 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(seed=row)).save(path)
    source = image_stream(str(tmp_path), size=SMALL, resize=SMALL)
    in_memory = Split(np.stack([image(seed=row) for row in range(4)]), source.test.labels)
    normalization = Normalization.fit(source.test, "imagenet")
    for kind in CONSTANTS:
        streamed = pickle.loads(pickle.dumps(corrupted(source.test, kind, 4, seed=1)))
        (images, labels), *_ = StreamingLoader(streamed, normalization, 4, workers=0)
        expected = corrupted(in_memory, kind, 4, seed=1)
        pixels = torch.from_numpy((expected[:] - normalization.mean) / normalization.std)
        torch.testing.assert_close(images.permute(0, 2, 3, 1), pixels, rtol=1e-4, atol=1e-4)
        assert labels.tolist() == expected.labels.tolist() == [0, 0, 1, 1]
    (images, _), *_ = StreamingLoader(source.test, normalization, 4, workers=0)
    assert not torch.allclose(images.permute(0, 2, 3, 1), pixels, atol=0.1)


def test_a_row_for_each_kind_and_strength(subject):
    found = subject()
    before = found.parts["test"].images.copy()
    rows = corruptions(found, seed=0)
    assert [(row["kind"], row["strength"]) for row in rows] == [
        ("none", 0),
        *((kind, strength) for kind in CONSTANTS for strength in STRENGTHS),
    ]
    assert rows[0].items() >= measure(found.predict("test")).items()
    worse = corrupted(found.parts["test"], "contrast", 3, seed=0)
    (row,) = [row for row in rows if (row["kind"], row["strength"]) == ("contrast", 3)]
    assert row.items() >= measure(compute(found.model, worse)).items()
    assert (found.parts["test"].images == before).all()
