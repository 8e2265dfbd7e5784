import os

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from sdnet.data.sources import image_stream
from sdnet.data.splits import Normalization, prepare
from sdnet.data.streaming import LIGHTING, StreamingLoader, color_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """22 photographs of noise, of different sizes and kinds, in two classes, and 4 for the test."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    kinds = ["RGB", "L", "CMYK"]
    for part, count in (("train", 22), ("val", 4)):
        for i in range(count):
            path = root / part / "ab"[i % 2] / f"{i:02}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((40 + i, 30 + 2 * i)).convert(kinds[i % 3])
            image.save(path, "PNG" if part == "train" and i == 6 else "JPEG", quality=95)
    return root


def loader(folder, seed=0, batch_size=8, workers=0, part="train", **options):
    source = image_stream(str(folder), size=16, resize=20)
    split = getattr(source, part)
    normalization = Normalization.fit(split, "imagenet")
    options |= {"seed": seed, "flip": True, "workers": workers}
    return StreamingLoader(split, normalization, batch_size, **options)


def test_an_epoch_depends_neither_on_workers_nor_processes_nor_where_it_is_resumed(folder):
    whole = list(loader(folder).batches(1))
    assert [len(labels) for _, labels in whole] == [8, 8, 6]
    by_workers = loader(folder, workers=2)
    list(by_workers.batches(0))  # persistent workers have seen another epoch
    ranks = [loader(folder, rank=rank, ranks=2).batches(1) for rank in range(2)]
    pairs = zip(*ranks, strict=True)
    sharded = [(torch.cat([a, b]), torch.cat([la, lb])) for (a, la), (b, lb) in pairs]
    for other in (list(by_workers.batches(1)), sharded):
        for (a, la), (b, lb) in zip(whole, other, strict=True):
            assert torch.equal(a, b) and torch.equal(la, lb)
    for (a, la), (b, lb) in zip(whole[1:], by_workers.batches(1, start=1), strict=True):
        assert torch.equal(a, b) and torch.equal(la, lb)


def test_an_image_is_cropped_anew_in_each_epoch_whatever_its_batch(folder):
    epochs = [list(loader(folder).batches(epoch)) for epoch in range(2)]
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])  # another order
    small = loader(folder, batch_size=3).batches(0)
    images, others = (torch.cat([x for x, _ in batches]) for batches in (epochs[0], small))
    assert torch.equal(images, others)
    assert images.shape == (22, 3, 16, 16) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(folder):
    test = loader(folder, seed=None, part="test")
    images, labels = next(iter(test))
    assert labels.tolist() == [0, 0, 1, 1]
    path = folder / "val" / "a" / "00.JPEG"
    expected = Image.open(path).convert("RGB")
    expected = TF.center_crop(TF.resize(expected, [20]), [16, 16])
    expected = TF.to_dtype(TF.pil_to_tensor(expected), torch.float32, scale=True)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    assert (images[0] - (expected - mean) / std).abs().max() < 2 / 255 / 0.224  # PIL rounds twice
    assert torch.equal(images, next(iter(test))[0])


def test_the_color_map_is_torchvisions_jitter_where_that_does_not_clamp():
    torch.manual_seed(0)
    image = 0.45 + 0.1 * torch.rand(3, 12, 10)
    factors = torch.tensor([1.1, 0.8, 1.3])
    noise = torch.tensor([0.1, -0.05, 0.02])
    matrix, shift = color_map(255 * image.mean((1, 2)), factors, noise)
    ours = (matrix @ (255 * image).flatten(1) + shift).view(image.shape) / 255
    adjust = {0: TF.adjust_brightness, 1: TF.adjust_contrast, 2: TF.adjust_saturation}
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        expected = image
        for i in order:
            expected = adjust[i](expected, factors[i].item())
        expected = expected + (LIGHTING @ noise / 255)[:, None, None]
        torch.testing.assert_close(
            ours, expected, rtol=0, atol=2e-4
        )  # its grey weights are rounded


def test_crops_cover_the_share_of_the_area_that_is_asked_for(folder):
    reader = loader(folder).reader.dataset
    image = torch.zeros(3, 100, 120, dtype=torch.uint8)
    image[0] = torch.arange(120) * 2  # a crop's range of red tells its width
    widths = []
    for row in range(200):
        crop, matrix, _ = reader.for_training(image, 0, row)
        red = crop[0].float()
        widths.append((red.max() - red.min()).item() / 2)
        assert crop.shape == (3, 16, 16) and not torch.equal(matrix, torch.eye(3))
    assert min(widths) < 45 and max(widths) > 95


def test_workers_are_out_of_reach_of_signals_to_the_process_group(folder):
    batches = loader(folder, workers=1).batches()
    next(batches)
    groups = {os.getpgid(child.pid) for child in psutil.Process().children()}
    assert groups and os.getpgrp() not in groups


def test_an_unreadable_image_is_named_by_the_process_that_trains(folder, tmp_path):
    bad = tmp_path / "bad"
    for part in ("train", "test"):
        (bad / part / "a").mkdir(parents=True)
        (bad / part / "a" / "1.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ValueError, match=r"cannot be read: .*a/1\.jpg"):
        list(loader(bad, workers=1).batches())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 0}, "size must be whole and at least 1, got 0"),
        ({"size": 64, "resize": 32}, "resize must be whole and at least size=64, got 32"),
        ({"scale": [0.5, 0.2]}, "scale must be two numbers 0 < a <= b <= 1"),
        ({"scale": 1}, "scale must be two numbers 0 < a <= b <= 1, got 1"),
        ({"color": 2}, "color must be a number 0 <= color <= 1, got 2"),
        ({"lighting": -1}, "lighting must be a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(folder, wrong, message):
    with pytest.raises(ValueError, match=message):
        image_stream(str(folder), **wrong)


def test_statistics_of_images_that_are_not_in_memory_are_refused(folder):
    with pytest.raises(ValueError, match="normalization must be imagenet"):
        prepare(image_stream(str(folder)), 0, "pixel", seed=0)
    data = prepare(image_stream(str(folder), size=64, resize=64), [2], "imagenet", seed=0)
    assert (len(data.train), len(data.validation), data.image_shape) == (18, 4, (3, 64, 64))
