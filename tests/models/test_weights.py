"""Weights that come from elsewhere: what they say of their use, and what is equal."""

import copy
import io
import warnings
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sdnet import LinearDecay, Uniform, resnet_cifar, resnet_imagenet, set_survival
from sdnet.models.gates import set_saved_survival


def network(p, **options):
    return resnet_cifar(8, schedule=Uniform(p), **options)


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def said(model, state):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        model.load_state_dict(state)
    return [str(warning.message) for warning in told]


@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential, AveragedModel, copy.deepcopy])
@pytest.mark.parametrize(
    "store", [lambda s: s, saved, copy.deepcopy, lambda s: saved({"m": s})["m"]]
)
def test_weights_of_another_use_are_told_once_however_they_came(store, wrap):
    state = store(wrap(network(0.5)).state_dict())
    assert said(wrap(network(0.5)), state) == []
    for other in (network(1.0), network(0.6), network(0.5, rescale="train")):
        (message,) = said(wrap(other), state)
        assert "other factors in evaluation" in message and "sdnet.load_run" in message


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ((0.5, "train"), (1.0, "eval")),  # full depth is the same in evaluation
        ((0.5, "none"), (0.9, "train")),
        ((0.5, "eval"), (0.5, "eval")),
    ],
)
def test_what_is_the_same_in_evaluation_is_no_mismatch(theirs, ours):
    model = network(theirs[0], rescale=theirs[1])
    assert said(network(ours[0], rescale=ours[1]), model.state_dict()) == []


def test_weights_that_say_nothing_load_in_silence_and_names_are_torchvisions():
    model = network(0.5)
    tensors = {name: tensor for name, tensor in model.state_dict().items()}
    before = OrderedDict(tensors)
    before._metadata = {name: {"version": 1} for name, _ in model.named_modules()}
    for state in (tensors, before):  # of safetensors; of an earlier version
        assert said(network(1.0), state) == []
        set_saved_survival(other := network(0.9), state)
        assert [block.survival for block in other.blocks] == [0.9] * 3
    theirs = torchvision.models.resnet18()
    assert said(theirs, resnet_imagenet(18, schedule=Uniform(0.5)).state_dict()) == []


def test_survival_is_read_from_weights():
    model, other = network(0.5), network(1.0)
    set_survival(model, [0.9, 0.7, 0.2])
    set_saved_survival(other, saved(model.state_dict()))
    assert [block.survival for block in other.blocks] == [0.9, 0.7, 0.2]
    assert said(other, model.state_dict()) == []


@pytest.mark.parametrize(
    "options, equal",
    [
        ({}, True),
        ({"schedule": LinearDecay(0.8), "rescale": "train"}, True),
        ({"schedule": LinearDecay(0.8), "rescale": "none"}, True),
        ({"schedule": LinearDecay(0.8)}, False),
    ],
    ids=range(4),
)
def test_which_networks_give_torchvisions_logits(options, equal, scrambled):
    theirs = scrambled(torchvision.models.resnet18(num_classes=5)).eval()
    ours = resnet_imagenet(18, num_classes=5, **options).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x)) == equal
