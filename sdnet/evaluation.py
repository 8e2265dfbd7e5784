"""Evaluation of a network at full depth."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdnet import device as devices


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "fp32"
) -> tuple[float, float]:
    """Mean cross-entropy and error in percent of `model` in evaluation mode: every block active.

    The model's training mode is restored.
    """
    was_training = model.training
    model.eval()
    loss = wrong = None
    count = 0
    for images, labels in batches:
        with devices.autocast(images.device, precision):
            logits = model(images)
        batch_loss = F.cross_entropy(logits.float(), labels, reduction="sum").double()
        batch_wrong = (logits.argmax(1) != labels).sum()
        # Sums stay on the device: reading them would wait for it at every batch.
        loss = batch_loss if loss is None else loss + batch_loss
        wrong = batch_wrong if wrong is None else wrong + batch_wrong
        count += len(labels)
    model.train(was_training)
    return loss.item() / count, 100.0 * wrong.item() / count
