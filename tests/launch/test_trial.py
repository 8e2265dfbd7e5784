import pytest
import torch
from torch import nn

from sdnet.config.errors import ConfigError
from sdnet.launch import build, trial
from sdnet.models.blocks import BasicBlock
from sdnet.models.resnet import resnet_cifar, resnet_imagenet
from sdnet.models.schedules import Constant, Uniform
from tests.config.composed import composed


@pytest.mark.parametrize(
    "target, settings, message",
    [
        ("LBFGS", {}, "TypeError: LBFGS.step\\(\\) missing .* 'closure'"),
        ("SparseAdam", {}, "RuntimeError: SparseAdam does not support dense gradients"),
        ("SGD", {"momentum": 0.9, "dampening": "much"}, "TypeError: unsupported operand"),
    ],
)
def test_an_optimizer_that_cannot_step_as_the_trainer_does_is_refused(target, settings, message):
    config = composed()
    config["optimizer"] = {"_target_": f"torch.optim.{target}", "lr": 0.1} | settings
    expected = f"^optimizer._target_=torch.optim.{target} cannot make a step here: {message}"
    for find in (build.check_optimization, build.build_optimization):
        with pytest.raises(ConfigError, match=expected):
            find(config, nn.Linear(2, 2))


@pytest.mark.parametrize("target", ["SGD", "AdamW", "RMSprop", "Adagrad", "NAdam", "Adafactor"])
def test_other_optimizers_are_tried_without_a_trace(target):
    config = composed()
    config["optimizer"] = {"_target_": f"torch.optim.{target}", "lr": 0.1}
    model = nn.Linear(2, 2)
    before = [p.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    build.build_optimization(config, model)
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    "schedule, gave",
    [
        (3, None),
        (lambda epoch, epochs: "fast", "must give a factor, 0 or more, got 'fast' at epoch 0 of"),
        (lambda epoch, epochs: float("nan"), "must give a factor, 0 or more, got nan at epoch 0"),
        (lambda epoch, epochs: [1.0][round(epoch)], "30, 30 it fails: IndexError: list index out"),
    ],
)
def test_a_rate_that_is_no_number_is_found_at_either_end(schedule, gave):
    with pytest.raises(ConfigError, match=gave or "_target_ must make a call"):
        trial.check_rates(composed(), schedule)
    trial.check_rates(composed(), lambda epoch, epochs: torch.ones(30)[int(epoch)])


def tried(model, size, images, shape=(1, 8, 8), schedule=None, processes=1, **trainer):
    config = composed(f"trainer.batch_size={size}")
    config["trainer"] |= trainer
    schedule = schedule or Constant()
    trial.check_least_rows(config, model, schedule, shape, images, processes)


# An ImageNet stem and three halvings leave maps of 1x1 of images of 8x8, cifar's network 2x2.
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_single_image_over_maps_of_one_pixel_is_refused_and_nothing_else(device):
    with torch.device(device):
        shrinking = resnet_imagenet(18, 10, in_channels=1)
        masked = resnet_imagenet(18, 10, in_channels=1, granularity="sample")
        wide = resnet_cifar(8, in_channels=1)
    state = {k: v.clone() for k, v in shrinking.state_dict().items()}
    for model in (shrinking, masked):
        tried(model, 4, 10)
        tried(wide, 4, 9)
        with pytest.raises(
            ConfigError, match=r"^trainer\.batch_size=4 leaves 1 of 9 training images"
        ):
            tried(model, 4, 9)
        with pytest.raises(ConfigError, match="leaves 1 of 11"):
            tried(model, 8, 11, processes=2)  # 3 of the last step: 1 and 2
        tried(model, 8, 12, processes=2)
        tried(model, 8, 11, accumulate=4)  # 3 are one part
    assert device == "meta" or all(torch.equal(shrinking.state_dict()[k], state[k]) for k in state)
    assert all(block.gate is None for block in shrinking.blocks)


def test_a_subset_of_one_row_is_refused_at_whichever_end_the_schedule_has_it():
    model = resnet_imagenet(18, 10, in_channels=1, granularity="subset")
    tried(model, 4, 8, schedule=Uniform(0.5))
    for schedule in (
        Uniform(0.3),
        lambda blocks, progress=1.0: [0.9 if progress else 0.3] * sum(blocks),
    ):
        with pytest.raises(ConfigError, match=r"leaves 4 of 8 .* under subset gates gets one: too"):
            tried(model, 4, 8, schedule=schedule)


def test_another_fault_of_the_network_is_not_taken_for_batchnorms():
    class Picky(nn.Sequential):
        def forward(self, x):
            raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        tried(Picky(BasicBlock(1, 1)), 4, 9)
