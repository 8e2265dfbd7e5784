"""BatchNorm's statistics computed again, at full depth.

Those of training were collected with some of the blocks out. Where a block is weighted by p_l in
evaluation, what the layers behind it see has another variance than it had then.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from sdnet.analysis.measures import measure
from sdnet.analysis.probes.subject import Subject
from sdnet.config.errors import ConfigError
from sdnet.models.norms import batch_norms


def recalibrate(subject: Subject) -> list[dict[str, Any]]:
    """Measures on validation and test before and after; the network itself is not changed.

    After: the mean over batches of training images, not augmented, at full depth as in evaluation.

    Raises:
        ConfigError: a network without BatchNorm.
    """
    model = copy.deepcopy(subject.model)
    if not batch_norms(model):
        raise ConfigError(f"--recalibrate-bn is for BatchNorm, which {subject.name} has not")
    update_bn(_of_one_size(subject.batches(subject.parts["train"])), _OnlyNormsTrain(model))
    model.eval()
    rows = []
    for part in ("validation", "test"):
        if part in subject.parts:
            for name, network in (("training", subject.model), ("recomputed", model)):
                found = measure(subject.compute(network, subject.parts[part]))
                rows.append({"part": part, "statistics": name, **found})
    return rows


class _OnlyNormsTrain(nn.Module):
    """A network whose training mode is that of its BatchNorm alone: gates stay at full depth."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def train(self, mode: bool = True) -> "_OnlyNormsTrain":
        self.model.eval()
        for norm in batch_norms(self.model):
            norm.train(mode)
        return self


def _of_one_size(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The images, without a smaller batch at the end: it would count as much as the others."""
    size = None
    for images, _ in batches:
        size = len(images) if size is None else size
        if len(images) == size:
            yield images
