import numpy as np
import pytest
import torch

from sdnet.data.loader import Loader, _copied_to, augment
from sdnet.data.split import Split
from sdnet.data.splits import Normalization


def slow_augment(images, shift_y, shift_x, flip):
    n, h, w, _ = images.shape
    out = np.zeros_like(images)
    for i in range(n):
        image = images[i, :, ::-1] if flip[i] else images[i]
        for y in range(h):
            for x in range(w):
                from_y, from_x = y - shift_y[i], x - shift_x[i]
                if 0 <= from_y < h and 0 <= from_x < w:
                    out[i, y, x] = image[from_y, from_x]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_equals_a_slow_loop(channels):
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 7, 5, channels)).astype(np.float32)
    shift_y, shift_x = random.integers(-6, 7, (2, 40))  # up to more than the width
    flip = random.random(40) < 0.5
    drawn = [torch.from_numpy(a) for a in (images, shift_y, shift_x, flip)]
    np.testing.assert_array_equal(augment(*drawn), slow_augment(images, shift_y, shift_x, flip))


def make_loader(n=50, batch_size=16, **options):
    images = np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    split = Split(images, np.arange(n))
    return Loader(split, Normalization.fit(images, "pixel"), batch_size, **options), images


def test_an_epoch_gives_each_image_once_normalised_in_a_new_order():
    loader, images = make_loader(seed=0)
    orders = []
    for epoch in range(2):
        batches = list(loader.batches(epoch))
        assert [len(y) for _, y in batches] == [16, 16, 16, 2] and len(loader) == 4
        labels = torch.cat([y for _, y in batches])
        assert sorted(labels.tolist()) == list(range(50))
        mean = images.astype(float).mean(0)
        expected = (images[labels] - mean) / (images - mean).std()
        got = torch.cat([x for x, _ in batches]).permute(0, 2, 3, 1)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        orders.append(labels.tolist())
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_evaluation_keeps_the_order_and_does_not_augment():
    loader, images = make_loader(shift=4, flip=True)
    mean = images.astype(float).mean(0)
    expected = (images - mean) / (images - mean).std()
    for epoch in (0, 1):
        batches, labels = zip(*loader.batches(epoch), strict=True)
        assert torch.cat(labels).tolist() == list(range(50))
        got = torch.cat(batches).permute(0, 2, 3, 1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_a_start_in_the_middle_of_an_epoch_continues_exactly():
    loader, _ = make_loader(seed=5, shift=2, flip=True)
    whole = list(loader.batches(3))
    for (a, la), (b, lb) in zip(whole[2:], loader.batches(3, start=2), strict=True):
        assert torch.equal(a, b) and torch.equal(la, lb)


def test_shifts_cover_the_range_evenly_flips_are_fair_and_zeros_come_in():
    loader, _ = make_loader(n=9, seed=0, shift=2, flip=True, batch_size=9)
    drawn = np.concatenate([loader._draw(step, 9) for step in range(1000)], axis=1)
    y, x, flips = torch.from_numpy(drawn)
    for shifts in (y, x):
        counts = torch.bincount(shifts + 2)
        assert len(counts) == 5 and (counts - 1800).abs().max() < 5 * (9000 * 0.2 * 0.8) ** 0.5
    assert abs(flips.double().mean() - 0.5) < 5 * 0.5 / 9000**0.5
    assert abs(np.corrcoef(y, x)[0, 1]) < 0.05
    images, _ = next(iter(loader.batches(0)))
    shift_y = torch.from_numpy(loader._draw(0, 9)[0])
    assert (images[shift_y > 0][:, :, 0] == 0).all() and (shift_y > 0).any()


def test_a_subset_gives_its_own_images_from_the_array_it_shares():
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    split = Split(images, np.arange(60)).subset(np.arange(5, 45)).subset(np.arange(3, 40, 3))
    as_they_are = Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
    loader = Loader(split, as_they_are, 4, seed=0)
    assert np.shares_memory(loader.images.numpy(), images)
    batches = list(loader.batches())
    labels = torch.cat([y for _, y in batches])
    assert sorted(labels.tolist()) == list(range(8, 45, 3)) and len(batches) == len(loader) == 4
    assert torch.equal(torch.cat([x for x, _ in batches]).flatten().long(), labels)


def test_another_device_gets_the_images_of_the_split_alone():
    images = np.random.default_rng(0).integers(0, 256, (3000, 2, 2, 1), dtype=np.uint8)
    split = Split(images, np.arange(3000)).subset(np.arange(0, 3000, 2))
    assert (_copied_to(torch.device("cpu"), split).numpy() == images[::2]).all()
    loader = Loader(split, Normalization.fit(split, "pixel"), 4, device="meta")
    assert loader.images.is_meta and loader.images.shape == (1500, 2, 2, 1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_have_the_memory_format_asked_for(channels_last):
    loader, _ = make_loader(seed=0, shift=1, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, _ = next(iter(loader.batches(0)))
    assert images.is_contiguous(memory_format=layout) and images.dtype == torch.float32
