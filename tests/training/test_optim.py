import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdnet import Uniform, resnet_cifar, set_gates
from sdnet.training.optim import (
    ConstantRate,
    Cosine,
    MultiStep,
    factor_of,
    parameters_of,
    set_rate,
    zero_skipped,
)


@pytest.mark.parametrize("epochs", range(1, 60))
def test_a_multistep_epoch_has_the_lower_rate_when_it_reaches_the_fraction(epochs):
    schedule = MultiStep([0.5, 0.55, 0.75], gamma=0.1)
    for e in range(epochs):
        passed = (2 * e >= epochs) + (20 * e >= 11 * epochs) + (4 * e >= 3 * epochs)
        for within in (0.0, 0.5, 0.999):  # the rate does not change within an epoch
            assert schedule(e + within, epochs) == pytest.approx(0.1**passed)


def test_cosine_and_constant_rates_and_their_warm_up():
    cosine = Cosine(warmup_epochs=2, warmup_factor=0.01)
    assert [cosine(e, 12) for e in (0, 1.99)] == [0.01, 0.01]
    assert cosine(2, 12) == 1.0 and cosine(7, 12) == pytest.approx(0.5)
    assert cosine(4.5, 12) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cosine(12, 12) == pytest.approx(0.0)
    assert cosine(2.5, 3) == pytest.approx(0.5)  # an epoch is left after the warm-up
    assert [ConstantRate()(e, 10) for e in (0, 9.9)] == [1.0, 1.0]
    assert [MultiStep(warmup_epochs=1)(e, 4) for e in (0.9, 1.0, 2.0)] == pytest.approx(
        [0.1, 1, 0.1]
    )


def test_defaults_and_the_ends_of_what_is_allowed():
    assert [MultiStep()(e, 100) for e in (49, 50, 74, 75)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert MultiStep((0.25,), 10.0, warmup_epochs=1, warmup_factor=1.0)(0, 4) == 1.0
    assert [ConstantRate(1)(e, 4) for e in (0, 1)] == [0.1, 1.0]
    assert Cosine(warmup_epochs=2)(2, 2) == 1.0  # nothing is left after the warm-up
    # 0.6666667 * 90 is 60.000003: epoch 60 all the same, and not 59
    assert [MultiStep([0.6666667])(e, 90) for e in (59.99, 60)] == pytest.approx([1, 0.1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"milestones": [5]},
        {"milestones": [0.5, 0]},
        {"milestones": [0.5, 1.0]},
        {"milestones": [0.5, True]},
        {"milestones": {0.5: 1}},
        {"gamma": 0},
        {"gamma": math.inf},
        {"gamma": True},
        {"gamma": "0.1"},
        {"warmup_epochs": 0.5},
        {"warmup_epochs": -1},
        {"warmup_epochs": True},
        {"warmup_factor": 0},
        {"warmup_factor": 1.01},
        {"warmup_factor": True},
    ],
    ids=str,
)
def test_a_wrong_schedule_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        MultiStep(**wrong)


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=type)
def test_a_factor_of_any_library_becomes_a_float(half):
    assert type(factor_of(lambda epoch, epochs: half * epoch, 3.0, 9)) is float
    assert factor_of(lambda epoch, epochs: half * epoch, 3.0, 9) == 1.5


@pytest.mark.parametrize("wrong", [None, "1", math.nan, math.inf, -0.1, True, [1.0], 1j])
def test_what_is_no_factor_is_shown_with_its_epoch(wrong):
    message = f"lr_schedule must give a factor, 0 or more, got {wrong!r} at epoch 2.5 of 9"
    with pytest.raises(ValueError) as raised:
        factor_of(lambda epoch, epochs: wrong, 2.5, 9)
    assert str(raised.value) == message


def test_the_rate_is_set_from_the_initial_one_even_after_a_reload():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    assert set_rate(optimizer, 0.5) == 0.1 and set_rate(optimizer, 0.1) == pytest.approx(0.02)
    reloaded = torch.optim.SGD([parameter], lr=0.2)
    reloaded.load_state_dict(optimizer.state_dict())
    assert set_rate(reloaded, 1.0) == 0.2


def test_each_group_has_its_own_initial_rate_and_the_first_ones_is_told():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in "ab")
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 4.0}], lr=0.5)
    for factor in (0.5, 0.25):
        assert set_rate(optimizer, factor) == 0.5 * factor
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * factor, 4.0 * factor]
    second.grad = torch.ones(1)
    zero_skipped(optimizer)
    assert first.grad.tolist() == [0.0] and second.grad.tolist() == [1.0]


def test_a_factor_puts_all_but_the_classifier_into_a_group_with_a_lower_rate():
    model = resnet_cifar(8)
    assert [*parameters_of(model, 0.5)] == [*model.parameters()]
    optimizer = torch.optim.SGD(parameters_of(model, 0.5, 0.1), lr=0.5)
    assert set_rate(optimizer, 0.5) == 0.25
    head, rest = optimizer.param_groups
    assert (head["lr"], rest["lr"]) == (0.25, pytest.approx(0.025))
    assert head["params"] == [model.fc.weight, model.fc.bias]
    assert rest["params"] == [p for n, p in model.named_parameters() if not n.startswith("fc.")]
    with pytest.raises(ValueError, match=r"^backbone_factor must be 1 for Sequential, of.*0.1"):
        parameters_of(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0.5, 0.1)


@pytest.mark.parametrize("skipped_update", ["decay", "freeze"])
def test_a_skipped_block_moves_as_sgd_without_gradient_moves_it_or_not_at_all(skipped_update):
    model = resnet_cifar(8, schedule=Uniform(0.5)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=0.01)
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    skipped = dict(model.layer2[0].named_parameters())  # in step 2 of 3, and the first
    expected = {name: p.detach().clone() for name, p in skipped.items()}
    momentum = {name: torch.zeros_like(p) for name, p in skipped.items()}
    for gates in ([True, False, True], [True, True, True], [True, False, True]):
        set_gates(model, gates)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if skipped_update == "decay":
            zero_skipped(optimizer)
        gradients = {name: p.grad for name, p in skipped.items()}
        if not gates[1]:
            kept = [
                g is None if skipped_update == "freeze" else not g.any() for g in gradients.values()
            ]
            assert all(kept)
        gradients = copy.deepcopy(gradients)
        optimizer.step()
        for name in skipped:
            if gates[1] or skipped_update == "decay":
                step = gradients[name] + 0.01 * expected[name]
                momentum[name] = 0.9 * momentum[name] + step
                expected[name] = expected[name] - 0.1 * (step + 0.9 * momentum[name])
            torch.testing.assert_close(skipped[name].detach(), expected[name])
