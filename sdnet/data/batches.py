"""Which images make up which batch."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from sdnet import rng


def share(count: int, rank: int, ranks: int) -> slice:
    """The part of `count` rows that falls to one of several processes."""
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def part_sizes(size: int, batch_size: int, accumulate: int, ranks: int) -> list[list[int]]:
    """For each process the images in the parts in which it computes a mini-batch of `size`.

    The last mini-batch of an epoch is divided into fewer, nearly equal parts: as many in every
    process, and of two images or more where there are so many.
    """
    full = -(-batch_size // (accumulate * ranks))
    largest, smallest = -(-size // ranks), size // ranks
    count = max(1, min(-(-largest // full), smallest // 2))
    slices = [share(size, rank, ranks) for rank in range(ranks)]
    shares = [s.stop - s.start for s in slices]
    return [[n // count + (i < n % count) for i in range(count)] for n in shares]


class Batches:
    """What the loaders have in common: the order of the images and their division into batches.

    Args:
        count: images of the split.
        batch_size: images per batch, over all processes; the last one may be smaller.
        seed: shuffle, keyed by seed and epoch; None (evaluation): in the order of the split.
        rank, ranks: give this process's share of every batch, of which there are `ranks`.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None, rank: int, ranks: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `start`, start+1, ... of an epoch: images (N, C, H, W) float32, labels (N,)."""
        raise NotImplementedError

    def size_of(self, index: int) -> int:
        """Images in a batch, over all processes."""
        return min(self.batch_size, self.count - index * self.batch_size)

    def share_of(self, index: int) -> slice:
        """Which of a batch's images fall to this process."""
        return share(self.size_of(index), self.rank, self.ranks)

    def rows(self, epoch: int, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """The batches' numbers, and the rows of the split that this process has in each."""
        order = np.arange(self.count)
        if self.seed is not None:
            order = rng.generator(self.seed, "order", epoch).permutation(self.count)
        for i in range(start, len(self)):
            yield i, order[i * self.batch_size : (i + 1) * self.batch_size][self.share_of(i)]
