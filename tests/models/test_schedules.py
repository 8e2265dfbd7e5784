import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.ops import StochasticDepth

from sdnet import Constant, LinearDecay, Uniform, linear_drop_rates
from sdnet.models.schedules import ScheduleError, mean_survival, survival_of

BAD = [0, 0.0, -1, 1.5, math.nan, math.inf, "abc", True, None]


@pytest.mark.parametrize(
    ("p_L", "first", "middle", "total"),
    [
        # L = 54: p_1 = 1 - (1 - p_L)/54, p_27 = 1 - (1 - p_L)/2, sum = 54 - 55/2 (1 - p_L)
        (0.5, 0.990740740740740740, 0.75, 40.25),
        (0.2, 0.985185185185185185, 0.60, 32.0),
        (1.0, 1.0, 1.0, 54.0),
    ],
)
def test_linear_decay_gives_the_papers_numbers_at_54_blocks(p_L, first, middle, total):
    p = LinearDecay(p_L)([18, 18, 18])
    assert len(p) == 54
    assert [p[0], p[26], p[53]] == pytest.approx([first, middle, p_L], rel=1e-12)
    assert sum(p) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LinearDecay(0.2), [0.8, 0.6, 0.4, 0.2]),
        (LinearDecay(0.2, rule="timm"), [1, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2]),
        (LinearDecay(0.2, rule="efficientnet"), [1, 0.8, 0.6, 0.4]),
        (LinearDecay(0.5, p_0=0.9), [0.8, 0.7, 0.6, 0.5]),
        (LinearDecay(0.6, p_0=0.9, rule="timm"), [0.9, 0.8, 0.7, 0.6]),
        (LinearDecay(0.5, p_0=0.9, rule="efficientnet"), [0.9, 0.8, 0.7, 0.6]),
        (LinearDecay(0.9, p_0=0.5), [0.6, 0.7, 0.8, 0.9]),
        (Uniform(0.3), [0.3] * 4),
        (Constant(), [1.0] * 4),
    ],
)
@pytest.mark.parametrize("stage_blocks", [(4,), (1, 3), [2, 1, 1]])
def test_hand_computed_survival_whatever_the_stage_boundaries(schedule, expected, stage_blocks):
    assert schedule(stage_blocks) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected"), [("paper", 0.3), ("timm", 0.3), ("efficientnet", 0.9)]
)
def test_a_single_block_gets_the_documented_end(rule, expected):
    assert LinearDecay(0.3, p_0=0.9, rule=rule)([1]) == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize("p", BAD)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: LinearDecay(p_L=p), "p_L"),
        (lambda p: LinearDecay(p_0=p), "p_0"),
        (Uniform, "p_L"),
    ],
    ids=["LinearDecay p_L", "LinearDecay p_0", "Uniform"],
)
def test_what_is_no_survival_probability_is_refused_by_name_and_value(make, name, p):
    with pytest.raises(ValueError, match=rf"^{name} must be .* 0 < {name} <= 1 .* got {p!r}$"):
        make(p)


def test_unknown_rule_is_refused_with_those_allowed():
    with pytest.raises(ValueError, match="rule must be one of paper, timm, efficientnet, got 'l'"):
        LinearDecay(rule="l")


@pytest.mark.parametrize("p_max", [0.0, 0.1, 0.5])
def test_linear_drop_rates_equal_those_torchvision_gives_convnext(p_max):
    setting = [CNBlockConfig(4, 8, 3), CNBlockConfig(8, None, 4)]
    with torch.device("meta"):
        convnext = ConvNeXt(setting, stochastic_depth_prob=p_max)
    theirs = [m.p for m in convnext.modules() if isinstance(m, StochasticDepth)]
    assert linear_drop_rates(7, p_max) == theirs
    assert LinearDecay(1 - p_max, rule="timm")([3, 4]) == pytest.approx([1 - d for d in theirs])


@pytest.mark.parametrize(("n", "expected"), [(1, [0.4]), (2, [0.0, 0.4]), (3, [0.0, 0.2, 0.4])])
def test_linear_drop_rates_by_hand_down_to_one_block(n, expected):
    assert linear_drop_rates(n, 0.4) == expected


@pytest.mark.parametrize(
    ("n", "p_max", "message"),
    [
        (0, 0.1, "num_blocks must be whole and at least 1, got 0"),
        (2.0, 0.1, r"num_blocks must be whole and at least 1, got 2\.0"),
        ("3", 0.1, "num_blocks must be whole and at least 1, got '3'"),
        (3, 1.0, "p_max must .* got 1.0"),
        (3, -0.1, "p_max must .* got -0.1"),
        (3, math.nan, "p_max must .* got nan"),
    ],
)
def test_linear_drop_rates_refuses_by_name(n, p_max, message):
    with pytest.raises(ValueError, match=message):
        linear_drop_rates(n, p_max)


GIVEN = {
    "numbers": [0.5, 1],
    "tuple": (0.5, 1.0),
    "array": np.array([0.5, 1.0]),
    "array of float32": np.array([0.5, 1.0], np.float32),
    "its numbers": list(np.array([0.5, 1.0], np.float32)),
    "tensor": torch.tensor([0.5, 1.0]),
    "its numbers, with a gradient": list(torch.tensor([0.5, 1.0], requires_grad=True).detach()),
    "fractions": [Fraction(1, 2), Decimal(1)],
    "whole number": [0.5, np.int64(1)],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("made", [lambda x: x, iter, lambda x: (p for p in x)])
def test_numbers_of_any_library_become_pythons(given, made):
    found = survival_of(lambda *_: made(given), (1, 1))
    assert found == [0.5, 1.0] and {type(p) for p in found} == {float}


@pytest.mark.parametrize("given", [None, 0.5, "ab", {0.5: 1, 1: 2}, {0.5, 1.0}, torch.tensor(0.5)])
def test_what_is_no_list_of_probabilities_is_shown(given):
    with pytest.raises(ScheduleError, match=r"^schedule must give 2 probabilities, .*, got "):
        survival_of(lambda *_: given, (1, 1))


def test_the_mean_survival_is_that_of_a_schedule_that_never_changes_and_else_an_average():
    fixed = LinearDecay(0.3)
    assert mean_survival(fixed, (2, 5)) == fixed((2, 5))  # to the last bit
    rising = mean_survival(lambda blocks, t: [1.0, 1.0 - t / 2], (1, 1))
    assert rising == [1.0, pytest.approx(0.75)]
    with pytest.raises(ScheduleError):
        mean_survival(lambda blocks, t: [0.5 if t < 0.4 else 0.0], (1,))


def test_what_a_schedule_gives_is_a_probability_for_each_block():
    seen = []

    def schedule(*given):
        seen.append(given)
        return np.array([0.5, 1.0], np.float32)

    given = survival_of(schedule, (1, 1), 0.25)
    assert given == [0.5, 1.0] and {type(p) for p in given} == {float}
    survival_of(schedule, (1, 1))
    assert seen == [((1, 1), 0.25), ((1, 1),)]
    with pytest.raises(ValueError, match=r"^schedule must give 3 probabilities, .*, got 2$"):
        survival_of(schedule, (2, 1))
    wrongs = (0.0, 1.1, "1", None, math.nan, True, np.True_, 1j, [1.0], torch.tensor([1.0]))
    for wrong in wrongs:
        with pytest.raises(
            ScheduleError, match=r"^survival must be a number with 0 < survival <= 1"
        ):
            survival_of(lambda *_, p=wrong: [1.0, p], (1, 1))
