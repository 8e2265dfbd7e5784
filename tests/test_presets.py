"""The presets against the paper's numbers, written here once more and independently.

Huang et al., Deep Networks with Stochastic Depth, ECCV 2016; a preset more is a row more.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sdnet.data.loader import Loader
from sdnet.data.split import Source, Split
from sdnet.data.splits import prepare
from sdnet.launch import build
from sdnet.training.optim import set_rate
from tests.config.composed import composed


@dataclass
class Recipe:
    """What the paper says of one experiment."""

    preset: str
    parts: list[int]  # images of each part of the training set
    classes: int
    kept: int  # images that remain for training
    steps: int  # per epoch
    eval_steps: int  # between evaluations
    rates: dict[tuple[int, int], float]  # learning rate of epochs (first, last), counted from 0
    stages: tuple[int, ...]  # blocks of each
    active: float  # blocks on average at p_L = 0.5
    parameters: int
    dataset: dict  # its settings


def cifar_parameters(blocks: int, classes: int) -> int:
    """Of `blocks` basic blocks in three stages 16, 32, 64 wide, shortcuts without parameters."""
    total = 3 * 16 * 9 + 2 * 16  # first convolution, its BatchNorm
    width_in = 16
    for width in (16, 32, 64):
        convolutions = 9 * width * width_in + 9 * width * width * (2 * blocks // 3 - 1)
        total += convolutions + (2 * blocks // 3) * 2 * width
        width_in = width
    return total + 64 * classes + classes


PAPERS_RATES = {(0, 249): 0.1, (250, 374): 0.01, (375, 499): 0.001}
CIFAR = {
    "parts": [50_000],
    "kept": 45_000,
    "steps": 352,
    "eval_steps": 352,
    "dataset": {"normalization": "pixel", "shift": 4, "flip": True},
}
RECIPES = [
    Recipe(
        "cifar10_resnet110",
        classes=10,
        rates=PAPERS_RATES,
        stages=(18, 18, 18),
        active=40.25,
        parameters=1_727_962,
        **CIFAR,
    ),
    Recipe(
        "cifar100_resnet110",
        classes=100,
        rates=PAPERS_RATES,
        stages=(18, 18, 18),
        active=40.25,
        parameters=cifar_parameters(54, 100),
        **CIFAR,
    ),
    Recipe(
        "cifar10_resnet1202",
        classes=10,
        rates={(0, 9): 0.01, (10, 149): 0.1, (150, 224): 0.01, (225, 299): 0.001},
        stages=(200, 200, 200),
        active=449.75,
        parameters=cifar_parameters(600, 10),
        **CIFAR,
    ),
    Recipe(
        "svhn_resnet152",
        parts=[73_257, 531_131],
        classes=10,
        kept=598_388,
        steps=4_675,
        eval_steps=200,
        rates={(0, 29): 0.1, (30, 34): 0.01, (35, 49): 0.001},
        stages=(25, 25, 25),
        active=56.0,
        parameters=cifar_parameters(75, 10),
        dataset={"normalization": "pixel", "shift": 0, "flip": False},
    ),
]
IMAGENET = {
    "parts": [1_281_167],
    "classes": 1_000,
    "kept": 1_281_167,
    "steps": 10_010,
    "eval_steps": 10_010,
    "rates": {(0, 29): 0.1, (30, 59): 0.01, (60, 89): 0.001},
    "dataset": {
        "size": 224,
        "resize": 256,
        "flip": True,
        "color": 0.4,
        "normalization": "imagenet",
    },
}
RECIPES += [  # parameters: what torchvision states
    Recipe(
        "imagenet_resnet152", stages=(3, 8, 36, 3), active=37.25, parameters=60_192_808, **IMAGENET
    ),
    Recipe(
        "imagenet_resnet50", stages=(3, 4, 6, 3), active=11.75, parameters=25_557_032, **IMAGENET
    ),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=[r.preset for r in RECIPES])


def preset(recipe, *overrides):
    return composed(f"experiment={recipe.preset}", *overrides)


def network(config, classes):
    with torch.device("meta"):
        return build.build_model(config, classes, in_channels=3)


def test_the_formula_gives_the_papers_number_of_parameters():
    # 1,732,010 in the authors' code, whose 109 convolutions have a bias for each of their channels
    biases = 16 + 36 * (16 + 32 + 64)
    assert cifar_parameters(54, 10) == 1_732_010 - biases == 1_727_962


@every_recipe
def test_data_and_steps_are_the_papers(recipe):
    config = preset(recipe)
    # as many images as the data set has, of one pixel: what counts is how many remain
    n = sum(recipe.parts)
    train = Split(np.zeros((n, 1, 1, 3), np.uint8), np.arange(n) % recipe.classes)
    names = [str(label) for label in range(recipe.classes)]
    source = Source(train, train.subset(np.arange(100)), names, parts=recipe.parts)
    dataset, trainer = config["dataset"], config["trainer"]
    data = prepare(source, dataset["validation"], dataset["normalization"], config["seed"])
    held_out = 0 if data.validation is None else len(data.validation)
    assert (len(data.train), held_out) == (recipe.kept, n - recipe.kept)
    loader = Loader(data.train, data.normalization, trainer["batch_size"])
    assert trainer["batch_size"] == 128 and len(loader) == recipe.steps
    unit = {"epoch": recipe.steps, "step": 1}[trainer["eval_unit"]]
    assert trainer["eval_every"] * unit == recipe.eval_steps
    assert dataset | recipe.dataset == dataset


@every_recipe
def test_the_network_is_the_papers(recipe):
    model = network(preset(recipe), recipe.classes)
    survival = [block.survival for block in model.blocks]
    L = sum(recipe.stages)
    assert len(survival) == L and tuple(model.stage_blocks) == recipe.stages
    assert survival == pytest.approx([1 - l / L * 0.5 for l in range(1, L + 1)])
    assert sum(survival) == pytest.approx(recipe.active) == pytest.approx((3 * L - 1) / 4)
    assert sum(p.numel() for p in model.parameters()) == recipe.parameters
    settings = {(b.granularity, b.rescale, b.order) for b in model.blocks}
    assert settings == {("batch", "eval", "post")}
    constant = network(preset(recipe, "schedule=constant"), recipe.classes)
    assert {block.survival for block in constant.blocks} == {1.0}


@every_recipe
def test_the_optimization_is_the_papers(recipe):
    config = preset(recipe)
    model = network(config, recipe.classes)
    optimizer, lr_schedule = build.build_optimization(config, model)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert len(group["params"]) == len(list(model.parameters()))  # decay on all
    assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, True, 0)
    assert group["weight_decay"] == 1e-4 and config["optimizer"]["skipped_update"] == "decay"
    epochs = config["trainer"]["epochs"]
    told = [epoch for first, last in recipe.rates for epoch in range(first, last + 1)]
    assert told == list(range(epochs))
    for (first, last), expected in recipe.rates.items():
        for epoch in (first, (first + last) // 2, last):
            for step in (0, 1, recipe.steps - 1):
                factor = lr_schedule(epoch + step / recipe.steps, epochs)
                assert set_rate(optimizer, factor) == pytest.approx(expected), (epoch, step)
