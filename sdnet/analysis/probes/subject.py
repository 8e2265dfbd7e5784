"""What a probe needs of a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from sdnet import rng
from sdnet.data.split import Files, Split
from sdnet.models.gates import fixed_weights
from sdnet.models.layout import Layout
from sdnet.models.macs import Macs
from sdnet.runs.predictions import Predictions


@dataclass(frozen=True)
class Subject:
    """A trained network, its data, and how the one is computed on the other.

    Attributes:
        name: for titles.
        model: in evaluation mode, on the device that computes it.
        survival: p_l of each gate when the weights were kept, in order of depth.
        macs: of the model.
        parts: `train`, `test` and, where there is one, `validation`. Probes make others of them:
            fewer images, or corrupted ones.
        compute: the predictions of a network on a part, in evaluation mode, in the part's order,
            with its gates as they are at that moment.
        batches: images of a part, normalised and without augmentation, and labels; on the device.
    """

    name: str
    model: nn.Module
    layout: Layout
    survival: list[float]
    macs: Macs
    parts: dict[str, Split | Files]
    compute: Callable[[nn.Module, Split | Files], Predictions]
    batches: Callable[[Split | Files], Iterable[tuple[Tensor, Tensor]]]

    def predict(self, part: str | Split | Files) -> Predictions:
        part = self.parts[part] if isinstance(part, str) else part
        return self.compute(self.model, part)

    def scores(self, part: str | Split | Files) -> dict[str, float]:
        """Error in percent and mean cross-entropy, with the gates as they are at this moment."""
        found = self.predict(part)
        wrong = found.predicted != found.labels
        return {"error": float(100.0 * wrong.mean()), "loss": float(-found.log_likelihood.mean())}

    def place(self, gate: int) -> dict[str, Any]:
        """The columns that say which gate, by its number from 0, a row is of."""
        return {
            "gate": gate + 1,
            "block": self.layout.block_of[gate] + 1,
            "stage": self.layout.stages[gate],
            "survival": self.survival[gate],
            "saved_macs": self.saved[gate],
        }

    @cached_property
    def saved(self) -> list[int]:
        """Multiply-adds of an image that each gate saves when closed, in order of depth."""
        of_gates = self.macs.of_gates()
        return [of_gates[gate][0] for gate in self.layout.gates]

    def without(self, out: Iterable[int]) -> AbstractContextManager[None]:
        """Within it the branches behind these gates, by their numbers from 0, do not run."""
        return fixed_weights({self.layout.gates[gate]: 0.0 for gate in out})


def some(part: Split | Files, most: int | None, seed: int) -> Split | Files:
    """So many images of a part, drawn by the seed, in its order; None: all of them."""
    if most is None or most >= len(part):
        return part
    chosen = rng.generator(seed, "images").permutation(len(part))[:most]
    return part.subset(np.sort(chosen))
