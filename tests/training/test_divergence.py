"""Where numbers stop being finite, and what is said of it."""

import re

import pytest
import torch
from torch import nn

from sdnet import LinearDecay, resnet_cifar, set_gates
from sdnet.training.counters import Diverged
from sdnet.training.divergence import first_not_finite
from tests.training.test_trainer import make


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = resnet_cifar(20, schedule=LinearDecay(0.5))
    set_gates(model, [True] * 9)
    return model


IMAGES = torch.ones(4, 3, 8, 8)


def spoil(parameter):
    with torch.no_grad():
        parameter[(-1,) * parameter.ndim] = torch.nan


@pytest.mark.parametrize(
    "spoilt, place",
    [
        (["layer2.1.conv2", "layer3.0.conv1"], "block 5 of 9 (layer2.1.conv2)"),
        (["fc"], "fc"),
        (["conv1", "fc"], "conv1"),
    ],
)
def test_the_first_module_in_depth_is_named_whose_values_are_not_finite(model, spoilt, place):
    for name in spoilt:
        spoil(model.get_submodule(name).weight)
    found = first_not_finite(model, IMAGES)
    assert found == f"the first values that are not finite come out of {place}"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_closed_block_is_passed_over(model):
    spoil(model.layer1[1].conv1.weight)
    spoil(model.layer2[1].conv1.weight)
    set_gates(model, [block is not model.layer1[1] for block in model.blocks])
    assert "block 5 of 9 (layer2.1.conv1)" in first_not_finite(model, IMAGES)


def test_gradients_are_looked_at_as_backward_goes_and_images_first_of_all(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert first_not_finite(model, IMAGES) == "its outputs and gradients are finite"
    for name in ("layer1.0.conv1", "layer3.1.bn2"):
        spoil(model.get_submodule(name).weight.grad)
    found = first_not_finite(model, IMAGES)
    assert found.endswith("that is not finite is that of block 8 of 9 (layer3.1.bn2.weight)")
    assert first_not_finite(model, IMAGES / 0) == "the images hold values that are not finite"
    assert first_not_finite(model, None) == "no step was computed"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_ends_at_the_very_step_and_its_last_good_checkpoint_stays(tmp_path, accumulate):
    settings = ["trainer.epochs=3", "schedule=constant", f"trainer.accumulate={accumulate}"]
    trainer = make(tmp_path / "run", *settings)
    step = trainer.train_step

    def train_step(images, labels):
        if trainer.counters.step == 14:
            nn.init.constant_(trainer.model.layer2[0].bn2.weight, torch.inf)
        step(images, labels)

    trainer.train_step = train_step
    with pytest.raises(Diverged) as raised:
        trainer.fit()
    said = r"^the training loss is nan at step 15 \(epoch 1.36, learning rate 0.1\): the first "
    assert re.match(
        said + r"values that are not finite come out of block 2 of 3 ", str(raised.value)
    )
    assert trainer.counters.step == 14 and len(trainer.run.rows()) == 1
    kept = trainer.run.load_checkpoint()
    assert kept["counters"]["step"] == 11
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_weights_spoilt_by_the_step_before_an_evaluation_are_not_kept(tmp_path):
    trainer = make(tmp_path / "run", "trainer.epochs=3", "schedule=constant")
    step = trainer.optimizer.step

    def spoiling(*args):
        step(*args)
        if trainer.counters.step == 21:
            spoil(trainer.model.layer1[0].conv1.weight)

    trainer.optimizer.step = spoiling
    message = r"the validation loss is nan at step 22 .* of block 1 of 3 \(layer1.0.conv1\)"
    with pytest.raises(Diverged, match=message):
        trainer.fit()
    assert trainer.run.load_checkpoint()["counters"]["step"] == 11 == trainer.run.rows()[-1]["step"]
