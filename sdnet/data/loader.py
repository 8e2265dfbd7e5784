"""Batches from images kept in memory, normalised and augmented a whole batch at a time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdnet import rng
from sdnet.data.batches import Batches
from sdnet.data.split import Split
from sdnet.data.splits import Normalization
from sdnet.models.gates import sent_to


def augment(images: Tensor, shift_y: Tensor, shift_x: Tensor, flip: Tensor) -> Tensor:
    """Flips and shifts each image of a batch by its own amounts, filling with zeros.

    Args:
        images: (N, H, W, C), already normalised: zero is the mean.
        shift_y, shift_x: (N,) whole numbers; the content moves down and to the right.
        flip: (N,) booleans; mirrored left to right, before the shift.

    Returns:
        (N, H, W, C), contiguous.
    """
    n, h, w, c = images.shape
    # One zero pixel in front, then one gather of pixels: what lies outside reads the zero pixel.
    pixels = torch.cat([images.new_zeros(1, c), images.reshape(-1, c)])
    rows = torch.arange(h, device=images.device) - shift_y[:, None]
    cols = torch.arange(w, device=images.device) - shift_x[:, None]
    row_inside = (rows >= 0) & (rows < h)
    col_inside = (cols >= 0) & (cols < w)
    cols = torch.where(flip[:, None], w - 1 - cols, cols)
    first = torch.arange(n, device=images.device)[:, None] * (h * w) + 1
    index = (first + rows * w)[:, :, None] + cols[:, None, :]
    index *= row_inside[:, :, None] & col_inside[:, None, :]
    return pixels.index_select(0, index.view(-1)).view(n, h, w, c)


def _copied_to(device: torch.device, split: Split) -> Tensor:
    """The images of a split (N, H, W, C), copied a block at a time."""
    images = torch.empty((len(split), *split.images.shape[1:]), dtype=torch.uint8, device=device)
    for i in range(0, len(split), 1024):
        images[i : i + 1024] = torch.from_numpy(split[i : i + 1024])
    return images


class Loader(Batches):
    """Iterates over a split in memory: on the CPU where it lies, else copied to `device`.

    Args:
        normalization: fitted on the training part.
        batch_size, seed, rank, ranks: see `Batches`; with a seed images are augmented, keyed by
            seed and step.
        shift: move by up to so many pixels each way.
        flip: mirror left to right with probability 1/2.
        channels_last: memory format of the batches.
    """

    def __init__(
        self,
        split: Split,
        normalization: Normalization,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        seed: int | None = None,
        shift: int = 0,
        flip: bool = False,
        channels_last: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ):
        super().__init__(len(split), batch_size, seed, rank, ranks)
        self.device = torch.device(device)
        if self.device.type == "cpu":  # the array that the split shares with others
            self.images = torch.from_numpy(split.images)
            self.lies_at = torch.from_numpy(split.indices)
        else:
            self.images = _copied_to(self.device, split)
            self.lies_at = torch.arange(len(split), device=device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.mean = torch.from_numpy(normalization.mean).to(device)
        self.std = torch.from_numpy(normalization.std).to(device)
        self.shift = shift
        self.flip = flip
        self.channels_last = channels_last

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for i, rows in self.rows(epoch, start):
            numbers = rows[None]
            augmented = self.seed is not None and (self.shift or self.flip)
            if augmented:
                drawn = self._draw(epoch * len(self) + i, self.size_of(i))
                numbers = np.concatenate([numbers, drawn[:, self.share_of(i)]])
            # One copy to the device, which the host does not wait for.
            rows, *drawn = sent_to(self.device, torch.from_numpy(numbers))
            images = self._normalize(self.images[self.lies_at[rows]])
            if augmented:
                shift_y, shift_x, flip = drawn
                images = augment(images, shift_y, shift_x, flip.bool())
            images = images.permute(0, 3, 1, 2)  # NHWC in memory is what channels_last means
            if not self.channels_last:
                images = images.contiguous()
            yield images, self.labels[rows]

    def _normalize(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean).div_(self.std)

    def _draw(self, step: int, n: int) -> np.ndarray:
        """Shifts down and right and flips (3, n) of the n images of a step."""
        random = rng.generator(self.seed, "augment", step)
        shifts = random.integers(-self.shift, self.shift, (2, n), endpoint=True)
        flips = (random.random(n) < 0.5) & self.flip
        return np.concatenate([shifts, flips[None]])
