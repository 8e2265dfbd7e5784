import logging
import math
import re

import numpy as np
import pytest

from sdnet.data.split import Source, Split
from sdnet.data.splits import Normalization, prepare
from tests.data.keyed import philox


def make_source(n=200, classes=4, **parts):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
    images[:, 0, 0, :] = np.arange(n)[:, None]  # who is who
    train = Split(images, np.arange(n) % classes)
    return Source(train, Split(images[:7], train.labels[:7]), list("abcd")[:classes], **parts)


@pytest.mark.parametrize(
    "validation, count",
    [(50, 50), (0.1, 20), (50.0, 50), (1, 1), (1.0, 1), (0.088, 18), (150, 150)],
)
def test_the_split_takes_the_first_of_a_keyed_permutation(validation, count):
    source = make_source()
    data = prepare(source, validation, "channel", seed=3)
    order = philox(3, "split").permutation(200).tolist()
    chosen = {i for i in range(200) if order.index(i) < count}
    assert set(data.validation[:][:, 0, 0, 0].tolist()) == chosen
    assert set(data.train[:][:, 0, 0, 0].tolist()) == set(range(200)) - chosen
    for part in (data.train, data.validation):  # labels move with their images
        assert (part.labels == part[:][:, 0, 0, 0] % 4).all()


def test_zero_sets_nothing_aside_and_a_validation_part_of_the_source_is_kept(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sdnet")
    part = make_source().test
    source = make_source(validation=part)
    assert prepare(source, 0.1, "channel", 0).validation is part
    assert len(prepare(source, 0.1, "channel", 0).train) == 200
    assert prepare(source, [3], "channel", 0).validation is part
    for none in (0, 0.0):
        assert prepare(source, none, "channel", 0).validation is None
        data = prepare(make_source(), none, "channel", 0)
        assert data.validation is None and len(data.train) == 200
    brings = f"the data set brings {len(part)} validation images; validation="
    kept, again, listed, left, _ = caplog.messages  # nothing is said where a data set brings none
    assert kept == f"{brings}0.1 sets no others aside" == again and listed.startswith(
        brings + "[3]"
    )
    assert left == f"{brings}0 leaves them out"
    for wrong in (-1, 1.5, "all", math.nan):  # not used, but what it is to mean must be plain
        with pytest.raises(ValueError, match="validation must be"):
            prepare(source, wrong, "channel", 0)
    data = prepare(source, 50, "channel", 0)
    assert data.test is source.test and data.classes == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "validation", [-1, 200, 201, 1.5, 0.001, "all", True, float("nan"), float("inf")]
)
def test_a_split_that_cannot_be_is_refused_by_name(validation):
    with pytest.raises(ValueError, match="validation"):
        prepare(make_source(), validation, "channel", 0)


def test_a_split_that_empties_a_class_is_refused():
    source = make_source(n=8)
    left = philox(0, "split").permutation(8)[-1] % 4
    names = [name for name in "abcd" if name != "abcd"[left]]
    message = f"validation=7 leaves no training image of {names}: 8 images are too few"
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(source, 7, "channel", 0)
    part = make_source().test  # without one: 0 to 2 and 3 to 6
    with pytest.raises(ValueError, match=r"leaves no training image of \['d'\]: 3 images"):
        prepare(Source(part.subset(np.arange(3)), part, list("abcd")), 0, "channel", 0)


@pytest.mark.parametrize(
    "parts, validation", [([200], [5]), ([80, 120], [7, 3]), ([80, 120], [0, 30]), ([200], [50.0])]
)
def test_a_list_takes_so_many_of_each_class_from_each_part(parts, validation):
    source = make_source(classes=3, parts=parts)
    data = prepare(source, validation, "channel", seed=3)
    held_out, kept = data.validation.indices, data.train.indices
    assert sorted([*held_out, *kept]) == list(range(200))  # none in both, none lost
    ends = np.cumsum(parts)
    for start, end, count in zip(ends - parts, ends, validation, strict=True):
        inside = held_out[(start <= held_out) & (held_out < end)]
        assert np.bincount(inside % 3, minlength=3).tolist() == [count] * 3
    for part in (data.train, data.validation):  # labels and images belong to their row
        assert (part.labels == part.indices % 3).all()
        assert (part[:][:, 0, 0, 0] == part.indices).all()


def test_the_same_seed_takes_the_same_per_class_and_another_one_others():
    source = make_source(parts=[80, 120])
    first, again, other = (
        prepare(source, [7, 3], "channel", seed).validation.indices.tolist() for seed in (1, 1, 2)
    )
    assert first == again and first != other
    ones = [prepare(source, [1, 0], "channel", seed).validation.indices[0] for seed in range(9)]
    assert max(ones) > 10  # by chance, not the first of the class


@pytest.mark.parametrize("validation", [[], [5], [5, 5, 5], [5, 1.5], [5, -1], [5, "a"], [0, 0]])
def test_a_list_that_does_not_fit_the_parts_is_refused_by_name(validation):
    with pytest.raises(ValueError, match=r"validation=\[.*\] must hold .*\(2 here\): whole"):
        prepare(make_source(parts=[80, 120]), validation, "channel", 0)
    with pytest.raises(ValueError, match=r"=\[True\] must hold .*\(1 here\)"):
        prepare(make_source(), [True], "channel", 0)


def test_more_of_a_class_than_a_part_has_is_refused_with_its_name():
    source = make_source(parts=[80, 120])
    with pytest.raises(ValueError, match=r"=\[21, 0\] takes 21 .* part 1 of 2, .* 20 of class 'a'"):
        prepare(source, [21, 0], "channel", 0)
    with pytest.raises(ValueError, match=r"\[20, 30\] leaves no training image of"):
        prepare(source, [20, 30], "channel", 0)
    assert len(prepare(source, [20, 29], "channel", 0).train) == 4


def test_normalization_is_fitted_on_the_training_part_alone():
    data = prepare(make_source(), 50, "pixel", seed=0)
    pixels = [image.astype(float) for image in data.train[:]]
    mean = sum(pixels) / len(pixels)
    squares = [((image - mean) ** 2).mean() for image in pixels]
    np.testing.assert_allclose(data.normalization.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(
        data.normalization.std, (sum(squares) / len(pixels)) ** 0.5, rtol=1e-6
    )
    assert data.normalization.mean.shape == (5, 6, 3) and data.normalization.std.shape == ()


def test_channel_normalization_is_one_number_per_channel():
    images = make_source(n=3000).train.images  # more than one block
    fitted = Normalization.fit(images, "channel")
    for c in range(3):
        values = images[..., c].astype(float)
        assert fitted.mean[c] == pytest.approx(values.mean(), rel=1e-6)
        assert fitted.std[c] == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("n", [2, 255, 256, 257, 600])  # a block is of 256
def test_statistics_are_exact_whatever_the_number_of_images(n):
    random = np.random.default_rng(n)
    images = random.integers(0, 256, (n, 2, 3, 3), dtype=np.uint8)
    images[:, 0, 0] = 255  # the largest sums
    subset = Split(np.concatenate([images[:1] // 2, images]), np.arange(n + 1)).subset(
        np.arange(1, n + 1)
    )
    values = images.astype(np.float64)
    mean = values.sum((0, 1, 2)) / (6 * n)
    std = np.sqrt(((values - mean) ** 2).sum((0, 1, 2)) / (6 * n))
    mean_image = values.sum(0) / n
    one_std = np.sqrt(((values - mean_image) ** 2).sum() / (18 * n))
    for given in (images, subset):
        channel, pixel = (Normalization.fit(given, kind) for kind in ("channel", "pixel"))
        for got, expected in (
            (channel.mean, mean),
            (channel.std, std),
            (pixel.mean, mean_image),
            (pixel.std, one_std),
        ):
            assert got.dtype == np.float32 and got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=2e-7)


def test_imagenets_statistics_are_those_of_its_networks_for_three_channels_alone():
    fitted = Normalization.fit(np.zeros((2, 4, 4, 3), np.uint8), "imagenet")
    np.testing.assert_allclose(fitted.mean, [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(fitted.std, [58.395, 57.12, 57.375], rtol=1e-6)
    assert fitted.mean.dtype == fitted.std.dtype == np.float32
    for channels in (1, 4):
        message = f"normalization imagenet is for 3 channels, these have {channels}"
        with pytest.raises(ValueError, match=message):
            Normalization.fit(np.zeros((2, 3, 3, channels), np.uint8), "imagenet")


def test_a_constant_channel_does_not_divide_by_zero():
    assert Normalization.fit(np.full((4, 2, 2, 1), 9, np.uint8), "channel").std.tolist() == [1.0]
    assert Normalization.fit(np.full((4, 2, 2, 1), 9, np.uint8), "pixel").std.tolist() == 1.0
    images = np.full((4, 2, 2, 2), 9, np.uint8)
    images[:2, :, :, 1] = 8  # nearly constant
    assert Normalization.fit(images, "channel").std.tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="must be one of pixel, channel, imagenet, got 'x'"):
        Normalization.fit(np.zeros((4, 2, 2, 1), np.uint8), "x")


def test_splitting_copies_no_image():
    source = make_source()
    data = prepare(source, 50, "channel", seed=0)
    assert data.train.images is source.train.images is data.validation.images
    assert data.image_shape == (3, 5, 6) and len(data.train) == 150
