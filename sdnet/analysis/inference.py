"""What samples tell of a difference: 95 % intervals, tests, and what n could have shown."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from sdnet import rng

LEVEL = 0.05
POWER = 0.8
MOST = 10_000  # pairs
REPLICATES = 2000
Ends = tuple[float, float]


def over_both(differences: np.ndarray) -> np.ndarray:
    """Half of the interval of the mean of (..., n seeds, N images), where both are samples.

    Effects of seed and of image are random; what neither explains is noise. The variance of the
    mean is that of the seeds' means, and what the effects of images add to it. The former is known
    with n - 1 degrees of freedom, the latter from many images. Each gives a half, and the halves
    are added as deviations are (MOVER; Zou and Donner 2008).
    """
    n, count = differences.shape[-2:]
    of_seeds, of_images = differences.mean(-1), differences.mean(-2)
    seeds = of_seeds.var(-1, ddof=1) / n  # with the noise in it
    images = np.maximum(of_images.var(-1, ddof=1) / count - noise(differences) / n, 0)
    t, z = stats.t.ppf(1 - LEVEL / 2, n - 1), stats.norm.ppf(1 - LEVEL / 2)
    return np.sqrt(t**2 * seeds + z**2 * images)


def noise(differences: np.ndarray) -> np.ndarray:
    """The variance of a seed's mean, of (..., n seeds, N images), if all seeds were alike.

    It is of what the effects of seed and image do not explain: so much the means vary at least.
    """
    n, count = differences.shape[-2:]
    of_seeds, of_images = differences.mean(-1), differences.mean(-2)
    squares = (differences**2).sum((-2, -1)) + n * count * of_seeds.mean(-1) ** 2
    squares -= count * (of_seeds**2).sum(-1) + n * (of_images**2).sum(-1)
    return np.maximum(squares, 0) / ((n - 1) * (count - 1)) / count


def over_images(differences: np.ndarray) -> Ends:
    """The interval of the mean of -1, 0 and 1 (n, N) for other images: percentiles of a bootstrap.

    The n of an image are drawn together. Of all images with the same sum, only how many is drawn.
    """
    n, count = differences.shape
    sums, times = np.unique(differences.sum(0, dtype=int), return_counts=True)
    drawn = rng.generator(0, "bootstrap").multinomial(count, times / count, REPLICATES)
    low, high = np.percentile(drawn @ sums / (n * count), [100 * LEVEL / 2, 100 - 100 * LEVEL / 2])
    return float(low), float(high)


def mcnemar(ours: int, theirs: int) -> float:
    """Two-sided and exact: of the images that one alone has wrong, does each have as many?"""
    return float(stats.binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def holm(p: Sequence[float]) -> np.ndarray:
    """p adjusted for their number (Holm 1979)."""
    order = np.argsort(p)
    steps = np.asarray(p)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def power(difference: float, deviation: float, n: int) -> float:
    """The probability that a t-test of n pairs, which have this deviation, shows a difference."""
    limit = stats.t.ppf(1 - LEVEL / 2, n - 1)
    shift = abs(difference) / deviation * n**0.5
    # t squared: its noncentral distribution is computed also where that of t gives no number
    return 1.0 - float(stats.ncf.cdf(limit**2, 1, n - 1, shift**2))


def smallest_shown(deviation: float, n: int) -> float:
    """The smallest difference that n pairs show with the probability POWER."""
    return deviation * brentq(lambda ratio: power(ratio, 1.0, n) - POWER, 0.0, 100.0)


def pairs_needed(difference: float, deviation: float) -> int | None:
    """The fewest pairs that show a difference with the probability POWER; None above MOST."""
    numbers = range(2, MOST + 1)
    place = bisect_left(numbers, POWER, key=lambda n: power(difference, deviation, n))
    return numbers[place] if place < len(numbers) else None
