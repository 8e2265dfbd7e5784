"""Images that do not fit in memory: read, decoded and cropped by worker processes as they are used.

What is random is keyed by the seed, the epoch and the image, so that the batches depend neither on
the number of workers or processes nor on where a run was interrupted.
"""

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sdnet import processes, rng
from sdnet.data.batches import Batches
from sdnet.data.decode import jpeg_decoder, read_tensor
from sdnet.data.readers import ReadersLost
from sdnet.data.split import Files
from sdnet.data.splits import Normalization

BATCHES_AHEAD = 2  # per worker
MOST_WORKERS = 8  # where the number is not given
STRIP = 64  # the most that an image may be longer than wide, before it is resized
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
        jpeg_decoder()  # here, so that what it tells is told once
        self.reader = DataLoader(
            Reader(split, seed, flip),
            batch_size=None,  # a key is one for a whole batch
            sampler=self.keys,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            # not the default, which within joblib's processes is not meant for others
            multiprocessing_context=processes.START_METHOD if workers else None,
            worker_init_fn=processes.stand_apart,
            persistent_workers=bool(workers) and seed is not None,  # in evaluation: seldom used
            pin_memory=self.device.type == "cuda",
        )

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.keys[:] = [(epoch, rows) for _, rows in self.rows(epoch, start) if len(rows)]
        for batch in self._read():
            if isinstance(batch, Exception):
                try:
                    raise batch
                finally:
                    del batch  # its traceback holds this frame: the processes would end late
            images, matrix, shift, labels = (t.to(self.device, non_blocking=True) for t in batch)
            # Colours and normalisation in one map of the (N, 3, H*W) pixels.
            shift = (shift - self.mean) / self.std
            pixels = mapped(images.flatten(2).float(), matrix / self.std, shift)
            yield pixels.view(images.shape).contiguous(memory_format=self.layout), labels

    def _read(self) -> Iterator:
        """What the reader gives for the keys.

        Raises:
            ReadersLost: a process that reads was killed, or could not be started.
        """
        if not self.reader.num_workers:
            yield from self.reader
            return
        try:
            with _no_sigchld_handler():
                batches = iter(self.reader)
            yield from batches
        except (RuntimeError, OSError, EOFError) as error:  # what is the reader's, it gives
            raise ReadersLost(
                f"the processes that read images were lost, for want of memory perhaps ({error}); "
                f"trainer.workers={self.reader.num_workers} could be fewer, and 0 needs none"
            ) from error


@contextmanager
def _no_sigchld_handler() -> Iterator[None]:
    """Takes away the handler that torch installs when it starts processes.

    It raises when one of them is lost, at whatever line this process is, be it where the run's end
    is written. The loss is found all the same, by whoever waits for the next batch.
    """
    mine = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if mine else None
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def default_workers() -> int:
    """One per core of this process's share of the machine, MOST_WORKERS at most."""
    cores, ranks = processes.cores(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if cores < (os.cpu_count() or 1) and "TORCHELASTIC_RUN_ID" not in os.environ:
        ranks = 1  # a scheduler has given this process its own; torchrun's processes share theirs
    return max(1, min(MOST_WORKERS, cores // ranks))


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

    def __getitem__(self, key: tuple[int, np.ndarray]) -> tuple[Tensor, ...] | Exception:
        epoch, rows = key
        prepare = self.for_evaluation if self.seed is None else self.for_training
        try:
            images = [prepare(read_tensor(self.files.path(row)), epoch, row) for row in rows]
            batch = [torch.stack(part) for part in zip(*images, strict=True)]
            batch.append(torch.from_numpy(self.files.labels[rows]))
            return tuple(map(_shared, batch) if get_worker_info() else batch)
        except (ValueError, ReadersLost) as error:
            return error  # to be raised where it can be told without this process's traceback
        except Exception:  # which nobody foresaw: with the traceback
            return RuntimeError(traceback.format_exc())

    def for_evaluation(self, image: Tensor, epoch: int, row: int) -> tuple[Tensor, ...]:
        height, width = image.shape[1:]
        # else one of few pixels, all in a row, would fill the memory
        image = self.center_crop(image, [min(height, STRIP * width), min(width, STRIP * height)])
        image = self.resize(image, [self.reading.resize])
        image = self.center_crop(image, [self.reading.size] * 2)
        if self.files.changed is not None:
            pixels = self.files.changed(image.permute(1, 2, 0).numpy(), int(row))
            image = torch.from_numpy(pixels).permute(2, 0, 1)
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


def mapped(pixels: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """`matrix @ pixels + shift`, of (N, 3, P), (N, 3, 3) and (N, 3, 1)."""
    if not pixels.is_cuda:
        return torch.baddbmm(shift, matrix, pixels)
    # There a product of matrices may round to TF32, of ten bits; these multiply and add in float32.
    for i in range(3):
        shift = torch.addcmul(shift, matrix[:, :, i : i + 1], pixels[:, i : i + 1])
    return shift


def _shared(tensor: Tensor) -> Tensor:
    """A tensor in the memory by which processes hand them over.

    It would be moved there by itself, but in a thread whose errors nobody hears: the batch would be
    waited for without end.
    """
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        raise ReadersLost(
            f"shared memory, /dev/shm, is too small for the batches that processes read ({error}): "
            f"trainer.workers=0 needs none"
        ) from error


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
