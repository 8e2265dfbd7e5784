import multiprocessing
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision.transforms.v2 import functional as TF

from sdnet.data.readers import ReadersLost
from sdnet.data.sources import image_stream
from sdnet.data.split import Reading
from sdnet.data.splits import Normalization, prepare
from sdnet.data.streaming import (
    BATCHES_AHEAD,
    LIGHTING,
    StreamingLoader,
    color_map,
    default_workers,
    mapped,
)


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


def loader(
    folder, seed=0, batch_size=8, workers=0, part="train", color=0.4, lighting=0.1, **options
):
    source = image_stream(str(folder), size=16, resize=20, color=color, lighting=lighting)
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
    def by_row(epoch, **options):
        """The images in the order of the split."""
        batches = loader(folder, **options)
        order = np.concatenate([rows for _, rows in batches.rows(epoch, 0)])
        images = torch.cat([images for images, _ in batches.batches(epoch)])
        return order.tolist(), images[np.argsort(order)]

    (order, first), (other_order, second) = (by_row(i, color=0, lighting=0) for i in range(2))
    assert order != other_order and first.shape == (22, 3, 16, 16)
    assert ((first - second).abs().amax((1, 2, 3)) > 0.1).all()
    _, small = by_row(0, color=0, lighting=0, batch_size=3)
    torch.testing.assert_close(first, small, rtol=0, atol=1e-6)


def test_evaluation_reads_every_mode_as_pil_does(folder):
    images, labels = next(iter(loader(folder, seed=None, batch_size=22)))
    assert labels.tolist() == [0] * 11 + [1] * 11
    files = [*sorted((folder / "train/a").iterdir()), *sorted((folder / "train/b").iterdir())]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    for image, file in zip(images, files, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        pixels = TF.center_crop(TF.resize(pixels, [20]), [16, 16]) / 255
        # decoders of JPEG files may differ by a value or two
        assert (image - (pixels - mean) / std).abs().max() < 2.5 / 255 / 0.224


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


def test_on_cuda_the_color_map_is_no_product_of_matrices_that_could_be_rounded_to_tf32():
    pixels, matrix, shift = 255 * torch.rand(4, 3, 35), torch.randn(4, 3, 3), torch.randn(4, 3, 1)
    expected = torch.baddbmm(shift, matrix, pixels)
    assert torch.equal(mapped(pixels, matrix, shift), expected)

    class OnCuda(torch.Tensor):
        is_cuda = True

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            assert "mm" not in function.__name__ and "matmul" not in function.__name__
            return super().__torch_function__(function, types, args, kwargs)

    found = mapped(pixels.as_subclass(OnCuda), matrix, shift).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


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
    streaming = loader(folder, workers=1)
    next(streaming.batches())
    workers = [worker.pid for worker in streaming.reader._iterator._workers]
    assert workers and os.getpgrp() not in map(os.getpgid, workers)
    assert all(os.getsid(pid) == pid for pid in workers)  # not of the terminal either
    for pid in workers if sys.platform == "linux" else ():
        status = Path(f"/proc/{pid}/status").read_text()
        mask = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)
        ignored = {s for s in signal.Signals if mask >> s - 1 & 1}
        assert {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2} <= ignored
        assert not {signal.SIGTERM, signal.SIGCHLD} & ignored  # by which they are ended


def test_workers_are_as_many_as_the_cores_of_this_process_but_not_more_than_eight(monkeypatch):
    def workers(cores, mine=None, processes=None, torchrun=False):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        if mine is None:  # not on every system
            monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        else:
            monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mine)), raising=False)
        for name in ("LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        if processes is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        if torchrun:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        return default_workers()

    assert [workers(cores) for cores in (1, 6, 8, 9, 64)] == [1, 6, 8, 8, 8]
    assert [workers(cores, cores) for cores in (1, 6, 64)] == [1, 6, 8]
    assert [workers(64, mine) for mine in (1, 3, 12, 63)] == [1, 3, 8, 8]
    assert workers(64, 6, processes=4) == 6  # which are its own already
    assert workers(64, 6, processes=4, torchrun=True) == 1  # which all of them share
    assert [workers(12, 12, n) for n in (1, 4, 5, 12, 24)] == [8, 3, 2, 1, 1]
    assert workers(64, processes=16) == 4
    assert BATCHES_AHEAD == 2


def test_an_unreadable_image_is_named_by_the_process_that_trains(folder, tmp_path):
    bad = tmp_path / "bad"
    for part in ("train", "test"):
        (bad / part / "a").mkdir(parents=True)
        (bad / part / "a" / "1.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ValueError, match=r"^root holds an image that cannot be read: .*a/1\.jpg"):
        list(loader(bad, workers=1).batches())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 0}, "^size must be whole and at least 1, got 0"),
        ({"size": True}, "^size must be whole and at least 1, got True"),
        ({"size": 16.0}, "^size must be whole and at least 1, got 16.0"),
        ({"size": 64, "resize": 63}, "^resize must be whole and at least size=64, got 63"),
        ({"resize": "256"}, "^resize must be whole and at least size=224, got '256'"),
        ({"size": 64, "resize": 32}, "resize must be whole and at least size=64, got 32"),
        ({"scale": [0.5, 0.2]}, "scale must be two numbers 0 < a <= b <= 1"),
        ({"scale": 1}, "scale must be two numbers 0 < a <= b <= 1, got 1"),
        ({"scale": [0.1, 0.2, 0.3]}, "scale must be two numbers 0 < a <= b <= 1, got"),
        ({"scale": "ab"}, "scale must be two numbers 0 < a <= b <= 1, got 'ab'"),
        ({"scale": [0, 1]}, "scale must be two numbers 0 < a <= b <= 1, got"),
        ({"scale": [0.5, 1.01]}, "scale must be two numbers 0 < a <= b <= 1, got"),
        ({"scale": [0.5, True]}, "scale must be two numbers 0 < a <= b <= 1, got"),
        ({"color": True}, "color must be a number 0 <= color <= 1, got True"),
        ({"color": -0.01}, "color must be a number 0 <= color <= 1, got -0.01"),
        ({"color": 1.01}, "color must be a number 0 <= color <= 1, got 1.01"),
        ({"lighting": "x"}, "lighting must be a number of at least 0, got 'x'"),
        ({"lighting": float("inf")}, "lighting must be a number of at least 0, got inf"),
        ({"lighting": float("nan")}, "lighting must be a number of at least 0, got nan"),
        ({"color": 2}, "color must be a number 0 <= color <= 1, got 2"),
        ({"lighting": -1}, "lighting must be a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(folder, wrong, message):
    with pytest.raises(ValueError, match=message):
        image_stream(str(folder), **wrong)


def test_settings_arrive_where_files_are_read_and_the_ends_of_their_ranges_are_allowed(folder):
    assert image_stream(str(folder)).train.reading == Reading(224, 256, (0.08, 1.0), 0.4, 0.1)
    assert asdict(Reading()) == {
        "size": 224, "resize": 256, "scale": (0.08, 1.0), "color": 0.4, "lighting": 0.1
    }  # fmt: skip
    for settings in (
        {"size": 1, "resize": 1, "scale": [1, 1], "color": 0, "lighting": 0},
        {"size": 32, "resize": 33, "scale": (0.5, 0.5), "color": 1, "lighting": 7.5},
    ):
        source = image_stream(str(folder), **settings)
        assert asdict(source.train.reading) == asdict(source.test.reading) == settings
        assert source.train.shape == (settings["size"], settings["size"], 3)


def test_statistics_of_images_that_are_not_in_memory_are_refused(folder):
    with pytest.raises(ValueError, match="normalization must be imagenet"):
        prepare(image_stream(str(folder)), 0, "pixel", seed=0)
    data = prepare(image_stream(str(folder), size=64, resize=64), [2], "imagenet", seed=0)
    assert (len(data.train), len(data.validation), data.image_shape) == (18, 4, (3, 64, 64))
    for part in (data.train, data.validation):  # names and labels move together
        folders = [Path(part.path(row)).parent for row in range(len(part))]
        assert [folder / "train" / "ab"[label] for label in part.labels] == folders


@pytest.fixture
def lost_at_once(monkeypatch):
    """Has torch look for the loss of a process ten times a second, not every five."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    wait = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.1,))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGTERM])
@pytest.mark.parametrize("seed", [0, None], ids=["training", "evaluation"])
def test_the_loss_of_a_process_is_told_where_a_batch_is_waited_for(
    folder, lost_at_once, number, seed
):
    handler = signal.getsignal(signal.SIGCHLD)
    batches = loader(folder, seed=seed, batch_size=1, workers=2).batches()
    next(batches)
    worker = multiprocessing.active_children()[0]
    os.kill(worker.pid, number)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # nothing is raised by SIGCHLD
    assert signal.getsignal(signal.SIGCHLD) == handler
    with pytest.raises(ReadersLost, match=f"{worker.pid}.*; trainer.workers=2 could be fewer"):
        list(batches)


def test_a_process_that_cannot_be_started_is_told(folder, monkeypatch):
    def refuse(self):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", refuse)
    with pytest.raises(ReadersLost, match=r"Cannot allocate memory.*trainer.workers=1 could be"):
        list(loader(folder, workers=1).batches())


def test_shared_memory_that_is_full_is_told(folder, monkeypatch):
    def refuse(self):
        raise RuntimeError("No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(ReadersLost, match=r"/dev/shm.*No space.*: trainer.workers=0 needs none"):
        list(loader(folder, workers=1).batches())
    assert len(list(loader(folder, workers=0).batches())) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_what_else_goes_wrong_is_no_loss_and_its_place_is_told(folder, workers):
    broken = loader(folder, workers=workers)
    broken.reader.dataset.for_training = None
    with pytest.raises(
        RuntimeError, match=r"__getitem__(.|\n)*TypeError: 'NoneType' object is not"
    ):
        list(broken.batches())


def test_a_strip_of_few_pixels_does_not_fill_the_memory(folder):
    reader, largest = loader(folder, seed=None).reader.dataset, []
    resize = reader.resize

    def resized(image, size):
        largest.append(max(image.shape))
        return resize(image, size)

    reader.resize = resized
    for shape in ((3, 60_000, 1), (3, 1, 60_000), (3, 64, 1)):
        image, _, _ = reader.for_evaluation(torch.ones(shape, dtype=torch.uint8), 0, 0)
        assert image.shape == (3, 16, 16)
    assert largest == [64] * 3
