"""What a probe needs of a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sdnet.data.split import Files, Split
from sdnet.models.layout import Layout
from sdnet.models.macs import Macs

if TYPE_CHECKING:
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
