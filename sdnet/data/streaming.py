"""Images that do not fit in memory: read, decoded and cropped by worker processes as they are used.

What is random is keyed by the seed, the epoch and the image, so that the batches depend neither on
the number of workers or processes nor on where a run was interrupted.
"""

import os
import signal
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdnet import rng
from sdnet.data.batches import Batches
from sdnet.data.decode import read_tensor
from sdnet.data.split import Files
from sdnet.data.splits import Normalization

BATCHES_AHEAD = 2  # per worker
MOST_WORKERS = 8  # where the number is not given
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601 luma, as PIL and torchvision have it
# The principal components of ImageNet's colours, as columns, of values 0..255 (Krizhevsky et al.
# 2012; the figures are those of github.com/facebook/fb.resnet.torch).
LIGHTING = (
    255
    * torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    * torch.tensor([0.2175, 0.0188, 0.0045])
)


class StreamingLoader(Batches):
    """Reads the images of a split as they are needed, a few batches ahead.

    Args:
        batch_size, seed, rank, ranks: see `Batches`; with a seed images are augmented, keyed by
            seed, epoch and image, else prepared for evaluation.
        flip: mirror left to right with probability 1/2.
        channels_last: memory format of the batches.
        workers: processes that read; 0: none, None: one per core, MOST_WORKERS at most.
    """

    def __init__(
        self,
        split: Files,
        normalization: Normalization,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        seed: int | None = None,
        flip: bool = False,
        channels_last: bool = True,
        workers: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        super().__init__(len(split), batch_size, seed, rank, ranks)
        self.device = torch.device(device)
        self.mean = torch.from_numpy(normalization.mean).to(device)[:, None]
        self.std = torch.from_numpy(normalization.std).to(device)[:, None]
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.keys = []  # of the batches to come
        workers = default_workers() if workers is None else workers
        self.reader = DataLoader(
            Reader(split, seed, flip),
            batch_size=None,  # a key is one for a whole batch
            sampler=self.keys,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            # not the default, which within joblib's processes is not meant for others
            multiprocessing_context=START_METHOD if workers else None,
            worker_init_fn=stand_apart,
            persistent_workers=bool(workers) and seed is not None,  # in evaluation: seldom used
            pin_memory=self.device.type == "cuda",
        )

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.keys[:] = [(epoch, rows) for _, rows in self.rows(epoch, start) if len(rows)]
        for batch in self.reader:
            if isinstance(batch, Exception):
                raise batch
            images, matrix, shift, labels = (t.to(self.device, non_blocking=True) for t in batch)
            # Colours and normalisation in one map of the (N, 3, H*W) pixels.
            shift = (shift - self.mean) / self.std
            pixels = torch.baddbmm(shift, matrix / self.std, images.flatten(2).float())
            yield pixels.view(images.shape).contiguous(memory_format=self.layout), labels


def default_workers() -> int:
    """One per core of this process's share of the machine, MOST_WORKERS at most."""
    cores = os.cpu_count()
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity and len(affinity(0)) < cores:  # a scheduler has given this process its own
        return min(MOST_WORKERS, len(affinity(0)))
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def stand_apart(worker: int) -> None:
    """Keeps signals from a worker that are meant for the process that trains, which still needs it.

    A terminal, torchrun and schedulers send them to the whole group of processes.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Reader(Dataset):
    """The work of a worker process: the batch for a key (epoch, rows).

    A batch is images (N, 3, size, size) as uint8, the colour map of each image that is to be
    applied to its pixels, matrices (N, 3, 3) and shifts (N, 3, 1), and labels (N,).
    """

    def __init__(self, files: Files, seed: int | None, flip: bool):
        from torchvision.transforms import v2

        self.files, self.reading, self.seed, self.flip = files, files.reading, seed, flip
        self.crop = v2.RandomResizedCrop(self.reading.size, scale=self.reading.scale)
        self.resize = v2.functional.resize
        self.center_crop = v2.functional.center_crop

    def __getitem__(self, key: tuple[int, np.ndarray]) -> tuple[Tensor, ...] | ValueError:
        epoch, rows = key
        prepare = self.for_evaluation if self.seed is None else self.for_training
        try:
            images = [prepare(read_tensor(self.files.path(row)), epoch, row) for row in rows]
        except ValueError as error:
            return error  # to be raised where it can be told without this process's traceback
        parts = (torch.stack(part) for part in zip(*images, strict=True))
        return *parts, torch.from_numpy(self.files.labels[rows])

    def for_evaluation(self, image: Tensor, epoch: int, row: int) -> tuple[Tensor, ...]:
        image = self.resize(image, [self.reading.resize])
        image = self.center_crop(image, [self.reading.size] * 2)
        return image.contiguous(), torch.eye(3), torch.zeros(3, 1)

    def for_training(self, image: Tensor, epoch: int, row: int) -> tuple[Tensor, ...]:
        reading = self.reading
        with rng.torch_seeded(self.seed, "augment", epoch, int(row)):
            box = self.crop.make_params([image])
            flip = self.flip and torch.rand(()) < 0.5
            factors = 1 + reading.color * (2 * torch.rand(3) - 1)
            noise = reading.lighting * torch.randn(3)
        top, left = box["top"], box["left"]
        image = image[:, top : top + box["height"], left : left + box["width"]]
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # else the resize repacks it
        image = self.resize(image, [reading.size] * 2)
        image = (image.flip(2) if flip else image).contiguous()
        return image, *color_map(image.float().mean((1, 2)), factors, noise)


def color_map(mean: Tensor, factors: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The change of an image's colours as a matrix (3, 3) and a shift (3, 1) of its pixels.

    Args:
        mean: the image's mean colour (3,).
        factors: of brightness, contrast (about the mean grey) and saturation (about each pixel's
            grey). Where nothing is clamped, as here, their order does not matter.
        noise: (3,) along the principal components of ImageNet's colours.
    """
    brightness, contrast, saturation = factors
    mix = saturation * torch.eye(3) + (1 - saturation) * GREY
    grey = (1 - contrast) * (GREY @ mean)
    return brightness * contrast * mix, (brightness * grey + LIGHTING @ noise)[:, None]
