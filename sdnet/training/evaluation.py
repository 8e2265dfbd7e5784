"""Evaluation of a network at full depth."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdnet.data.batches import Batches
from sdnet.runs.predictions import Predictions
from sdnet.training import device as devices

TOP5_CLASSES = 100  # top-5 errors are for data sets with so many classes or more


class Evaluation(NamedTuple):
    """Mean cross-entropy, and errors in percent; no top-5 error for fewer than TOP5_CLASSES."""

    loss: float
    error: float
    top5_error: float | None


class Outputs:
    """The logits of all images of a loader, and their labels, in its order.

    Args:
        batches: the loader, of this process alone where there are several.
    """

    def __init__(self, batches: Batches):
        self.batches = batches
        self.rows: Tensor | None = None  # logits, and behind them the label

    def put(self, i: int, logits: Tensor, labels: Tensor) -> None:
        """Takes those of batch `i`."""
        if self.rows is None:  # zeros, to be added to what other processes have
            shape = self.batches.count, logits.shape[1] + 1
            self.rows = torch.zeros(shape, device=logits.device)
        first, own = i * self.batches.batch_size, self.batches.share_of(i)
        rows = self.rows[first + own.start : first + own.stop]
        rows[:, :-1] = logits
        rows[:, -1] = labels

    def predictions(self, order: str) -> Predictions:
        rows = self.rows.cpu()
        return Predictions.from_logits(rows[:, :-1], rows[:, -1].long(), order)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: str = "fp32",
    add_up: Callable[[Tensor], None] | None = None,
    outputs: "Outputs | None" = None,
) -> Evaluation:
    """Loss and errors of `model` in evaluation mode: every block active.

    Args:
        batches: images and labels; of this process alone where there are several.
        add_up: replaces a tensor by its sum over all processes.
        outputs: takes the logits.

    The model's training mode is restored.
    """
    was_training = model.training
    model.eval()
    # Sums stay on the device: reading them would wait for it at every batch.
    sums = torch.zeros(4, dtype=torch.float64, device=next(model.parameters()).device)
    classes = 0
    for i, (images, labels) in enumerate(batches):
        with devices.autocast(images.device, precision):
            logits = model(images)
        classes = logits.shape[1]
        if outputs is not None:
            outputs.put(i, logits, labels)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        right = logits.topk(min(5, classes)).indices == labels[:, None]
        wrong, wrong5 = (logits.argmax(1) != labels).sum(), (~right.any(1)).sum()
        sums += torch.stack([loss.double(), wrong, wrong5, torch.full_like(wrong, len(labels))])
    model.train(was_training)
    if add_up is not None:
        add_up(sums)
        if outputs is not None:
            add_up(outputs.rows)
    loss, wrong, wrong5, count = sums.tolist()
    top5_error = 100.0 * wrong5 / count if classes >= TOP5_CLASSES else None
    return Evaluation(loss / count, 100.0 * wrong / count, top5_error)
