"""What a run's network said of each image, in `predictions.npz`: results without the network.

Logits are kept up to a constant for each image, so that its highest is 0, in float16; the predicted
class stays the same. A part of more than MOST numbers keeps what the measures below need.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sdnet.runs.files import Damaged, replacing

MOST = 50_000_000  # logits of a part: 50,000 images of 1,000 classes
TOP = 5
LEAST = -60_000.0  # that float16 holds, and no probability
NEXT = np.float16(-6e-8)  # the float16 next to 0


@dataclass(frozen=True)
class Predictions:
    """Of the N images of one part of the data, in its own order.

    Attributes:
        labels: (N,) the true classes.
        order: a hash of the images and labels in their order; parts of the same one can be paired.
        classes: C.
        logits: (N, C) float32, the highest of each image 0; None where they are too many.
        kept: of these the places of the TOP highest (N, TOP), and of each image log-probabilities
            of the predicted and of the true class, and the sum of squared probabilities (N, 3).
    """

    labels: np.ndarray
    order: str
    classes: int
    logits: np.ndarray | None
    kept: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def from_logits(cls, logits: Any, labels: Any, order: str) -> "Predictions":
        """Of logits (N, C) as an array or tensor, rounded as in the file."""
        logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.int64)
        classes = logits.shape[1]
        predicted = logits.argmax(1)[:, None]
        logits = logits - np.take_along_axis(logits, predicted, 1)
        rounded = logits.clip(LEAST).astype(np.float16)
        rounded[rounded == 0] = NEXT  # so that rounding makes no second one the first
        np.put_along_axis(rounded, predicted, np.float16(0), 1)
        whole = cls(labels, order, classes, rounded.astype(np.float32))
        if logits.size <= MOST:
            return whole
        top = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        logs = np.stack([np.log(whole.confidence), whole.log_likelihood, whole._squares], 1)
        return cls(labels, order, classes, None, (top, logs))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """(N, C) float64; ValueError where the logits are not kept."""
        if self.logits is None:
            raise ValueError(f"logits of {len(self)} images x {self.classes} classes are not kept")
        logits = self.logits.astype(np.float64)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    @property
    def predicted(self) -> np.ndarray:
        """(N,) the class of the highest logit."""
        return self.logits.argmax(1) if self.kept is None else self.kept[0][:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """(N,) the probability of the predicted class."""
        return np.exp(self.log_probabilities.max(1) if self.kept is None else self.kept[1][:, 0])

    @property
    def log_likelihood(self) -> np.ndarray:
        """(N,) the log-probability of the true class."""
        if self.kept is not None:
            return self.kept[1][:, 1]
        return np.take_along_axis(self.log_probabilities, self.labels[:, None], 1)[:, 0]

    @property
    def brier(self) -> np.ndarray:
        """(N,) the squared distance of the probabilities from the true class's 1 (Brier 1950)."""
        return 1.0 - 2.0 * np.exp(self.log_likelihood) + self._squares

    @property
    def _squares(self) -> np.ndarray:
        if self.kept is not None:
            return self.kept[1][:, 2]
        return np.exp(2.0 * self.log_probabilities).sum(1)

    @property
    def in_top5(self) -> np.ndarray:
        """(N,) whether the true class is among the five highest."""
        if self.kept is not None:
            return (self.kept[0] == self.labels[:, None]).any(1)
        own = np.take_along_axis(self.logits, self.labels[:, None], 1)
        return (self.logits > own).sum(1) < TOP


def write_predictions(
    path: Path, parts: Mapping[str, Predictions], epoch: float, step: int
) -> None:
    """Writes those of `test` and, where there is one, `validation`, and when they were made."""
    arrays: dict[str, Any] = {"epoch": np.float64(epoch), "step": np.int64(step)}
    for part, found in parts.items():
        arrays |= {f"{part}_labels": found.labels.astype(np.int32), f"{part}_order": found.order}
        arrays[f"{part}_classes"] = np.int64(found.classes)
        if found.kept is None:
            arrays[f"{part}_logits"] = found.logits.astype(np.float16)
        else:
            arrays[f"{part}_top"] = found.kept[0].astype(np.int32)
            arrays[f"{part}_logs"] = found.kept[1].astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with replacing(path) as file:
        file.write(buffer.getvalue())


def read_predictions(path: Path) -> dict[str, Predictions] | None:
    """By part; None where there is no such file.

    Raises:
        Damaged: it is not what was written.
    """
    arrays = _arrays(path)
    if arrays is None:
        return None
    present = [part for part in ("validation", "test") if f"{part}_labels" in arrays]
    try:
        return {part: _part(arrays, f"{part}_") for part in present}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path.name} cannot be read: {error}") from error


def _part(arrays: dict[str, np.ndarray], name: str) -> Predictions:
    labels, classes = arrays[f"{name}labels"].astype(np.int64), int(arrays[f"{name}classes"])
    logits, kept = arrays.get(f"{name}logits"), None
    shapes = {"labels": (len(labels),), "logits": (len(labels), classes)}
    if logits is None:
        kept = arrays[f"{name}top"], arrays[f"{name}logs"].astype(np.float64)
        shapes |= {"top": (len(labels), min(TOP, classes)), "logs": (len(labels), 3)}
    else:
        logits = logits.astype(np.float32)
    for key, shape in shapes.items():
        found = arrays.get(name + key)
        if found is not None and (found.shape != shape or not np.isfinite(found).all()):
            raise ValueError(f"{name}{key} are not {shape} finite numbers")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name}labels are not 0 to {classes - 1}")
    return Predictions(labels, str(arrays[f"{name}order"]), classes, logits, kept)


def step_of(path: Path) -> int | None:
    """The step at which predictions were made; None where there are none, or damaged ones."""
    try:
        arrays = _arrays(path)
        return None if arrays is None else int(arrays["step"])
    except (Damaged, ValueError, TypeError):
        return None


def _arrays(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        if not zipfile.is_zipfile(path):  # of which numpy says how to load it unsafely
            raise ValueError("it is no archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if not {"epoch", "step", "test_labels", "test_order", "test_classes"} <= found.keys():
            raise ValueError("it lacks arrays")
        return found
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path.name} cannot be read: {error}") from error
