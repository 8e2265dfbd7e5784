"""How good a network's predictions are, and how well it knows it.

Errors, calibration errors and areas are percent. All follow from the predictions of each image.
"""

from typing import Any, NamedTuple

import numpy as np

from sdnet.runs.predictions import Predictions

BINS = 15  # of Guo et al. 2017
TOP5_CLASSES = 100  # as in training: top-5 errors are for data sets with so many classes or more
MEASURES = ("loss", "error", "top5_error", "brier", "ece", "adaptive_ece", "auarc")


def measure(found: Predictions) -> dict[str, float | None]:
    """The numbers MEASURES of one part of the data; top5_error is None below TOP5_CLASSES.

    `loss` is the mean cross-entropy, which is the negative log-likelihood of an image. `brier` is
    the mean over images of the sum over classes of (p - y)^2 (Brier 1950): 0 to 2.
    """
    confidence, correct = found.confidence, right(found)
    top5_error = 100.0 * (~found.in_top5).mean() if found.classes >= TOP5_CLASSES else None
    return {
        "loss": float(-found.log_likelihood.mean()),
        "error": float(100.0 * (~correct).mean()),
        "top5_error": None if top5_error is None else float(top5_error),
        "brier": float(found.brier.mean()),
        "ece": calibration_error(reliability(confidence, correct)),
        "adaptive_ece": calibration_error(adaptive_reliability(confidence, correct)),
        "auarc": auarc(confidence, correct),
    }


def right(found: Predictions) -> np.ndarray:
    """(N,) whether each image's class is the predicted one."""
    return found.predicted == found.labels


class Bin(NamedTuple):
    """Images of similar confidence: the bin's ends, how many, their mean confidence, and the share
    of them that is classified correctly."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The bars of a reliability diagram: bins of equal width, without those of no image.

    A confidence on the border of two bins is of the lower one (Guo et al. 2017).
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    return [
        _bin(edges[i], edges[i + 1], confidence[place == i], correct[place == i])
        for i in np.unique(place)
    ]


def adaptive_reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> list[Bin]:
    """The same with bins of equal counts, as nearly as possible (Nguyen & O'Connor 2015)."""
    confidence, correct = _by_confidence(confidence, correct)
    parts = zip(np.array_split(confidence, bins), np.array_split(correct, bins), strict=True)
    return [_bin(c[0], c[-1], c, r) for c, r in parts if len(c)]


def _bin(low: float, high: float, confidence: np.ndarray, correct: np.ndarray) -> Bin:
    return Bin(
        float(low), float(high), len(correct), float(confidence.mean()), float(correct.mean())
    )


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error in percent: the mean over images of the gap between accuracy and
    confidence in their bin. It is ECE for bins of equal width, adaptive ECE for equal counts."""
    images = sum(b.images for b in bins)
    return 100.0 * sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / images


def auarc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the accuracy-rejection curve in percent (Nadeem et al. 2010).

    The least confident images are rejected first. The area is the mean of the accuracy among the
    k most confident images over k = 1 to N. Images of the same confidence count as in the mean
    over all their orders.
    """
    _, correct = _by_confidence(confidence, correct)
    accuracy = np.cumsum(correct[::-1]) / np.arange(1, len(correct) + 1)
    return float(100.0 * accuracy.mean())


def _by_confidence(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in ascending order of confidence; of equal ones `correct` is their mean, so that nothing
    depends on the order of the images."""
    values, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    mean = np.bincount(place, correct) / counts
    return np.repeat(values, counts), np.repeat(mean, counts)


def confusion(found: Predictions) -> np.ndarray:
    """(C, C) counts of images: the row is the true class, the column the predicted one."""
    pairs = found.labels * found.classes + found.predicted
    return np.bincount(pairs, minlength=found.classes**2).reshape(found.classes, -1)


def confusion_rows(found: Predictions, names: list[str]) -> list[dict[str, Any]]:
    """The counts that are not 0, with the classes' names."""
    pairs = np.stack([found.labels, found.predicted])
    (actual, predicted), counts = np.unique(pairs, axis=1, return_counts=True)
    cells = zip(actual, predicted, counts, strict=True)
    return [{"actual": names[a], "predicted": names[p], "count": int(n)} for a, p, n in cells]


def per_class(found: Predictions, names: list[str]) -> list[dict[str, Any]]:
    """A row for each class: its images, how many were taken for it, and its error; None for a class
    without images."""
    images = np.bincount(found.labels, minlength=found.classes)
    taken = np.bincount(found.predicted, minlength=found.classes)
    wrong = np.bincount(found.labels[~right(found)], minlength=found.classes)
    return [
        {
            "class": name,
            "images": int(n),
            "predicted": int(t),
            "error": 100.0 * int(w) / int(n) if n else None,
        }
        for name, n, t, w in zip(names, images, taken, wrong, strict=True)
    ]
