"""Evaluation of a fixed linear model against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from sdnet.training.evaluation import evaluate

# Of each of ten images, the place of its label among the classes, the likeliest first.
PLACES = {3: [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], 10: [0, 0, 0, 1, 2, 4, 5, 6, 8, 9]}
PLACES |= {n: [0, 0, 0, 1, 2, 4, 5, 6, 50, n - 1] for n in (99, 100)}


class Linear(nn.Module):
    """Whose logits show whether it is in evaluation mode; notes what it was called under."""

    def __init__(self, classes):
        super().__init__()
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(12, classes)
        self.seen = []

    def forward(self, x):
        logits = self.fc(self.dropout(x.flatten(1)))
        self.seen.append((len(x), self.dropout.training, torch.is_grad_enabled(), logits.dtype))
        return logits


def case(classes):
    """Model, batches of 4, 4 and 2 images, and numpy's losses and places of the labels."""
    torch.manual_seed(classes)
    model, images = Linear(classes), 3 * torch.randn(10, 3, 2, 2)
    weight, bias = (p.detach().double().numpy() for p in (model.fc.weight, model.fc.bias))
    logits = images.double().numpy().reshape(10, 12) @ weight.T + bias
    places = np.array(PLACES[classes])
    labels = (-logits).argsort(1)[range(10), places]
    losses = np.log(np.exp(logits).sum(1)) - logits[range(10), labels]
    batches = list(zip(images.split(4), torch.from_numpy(labels).split(4), strict=True))
    return model, batches, losses, places


@pytest.mark.parametrize("classes", [3, 10, 99, 100])
def test_loss_and_errors_are_means_over_the_images_of_the_network_at_full_depth(classes):
    model, batches, losses, _ = case(classes)
    found = evaluate(model.train(), batches)
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert found.error == 70
    assert found.top5_error == (40 if classes == 100 else None)  # places 5, 6, 50 and 99
    assert model.seen == [(n, False, False, torch.float32) for n in (4, 4, 2)]
    assert model.training and model.dropout.training and torch.is_grad_enabled()
    assert evaluate(model.eval(), batches) == found
    assert not model.training and not model.dropout.training


def test_each_of_two_processes_adds_the_sums_of_its_own_images_once():
    model, batches, losses, places = case(100)
    own = [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]
    sums = []

    def add_up(tensor):
        assert tensor.dtype == torch.float64
        sums.append(tensor.clone())
        tensor.copy_(sum(sums))

    evaluate(model, batches[::2], add_up=add_up)
    found = evaluate(model, batches[1::2], add_up=add_up)
    assert len(sums) == 2
    for rows, given in zip(own, sums, strict=True):
        wrong, wrong5 = (places[rows] > 0).sum(), (places[rows] > 4).sum()
        assert given[1:].tolist() == [wrong, wrong5, len(rows)]
        assert given[0].item() == pytest.approx(losses[rows].sum(), rel=1e-6)
    assert found == pytest.approx((losses.mean(), 70, 40), rel=1e-6)


def test_bf16_is_what_the_network_computes_in_but_not_its_loss():
    model, batches, *_ = case(10)
    given = []
    model.register_forward_hook(lambda module, images, logits: given.append(logits))
    found = evaluate(model, batches, "bf16")
    assert [dtype for *_, dtype in model.seen] == [torch.bfloat16] * 3
    logits, labels = torch.cat(given).double().numpy(), torch.cat([b[1] for b in batches])
    losses = np.log(np.exp(logits).sum(1)) - logits[range(10), labels]
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
