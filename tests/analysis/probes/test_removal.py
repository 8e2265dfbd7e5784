import random

import numpy as np
import pytest
from torch import nn

from sdnet import skip_branches
from sdnet.analysis.probes.lesions import lesions
from sdnet.analysis.probes.removal import pareto, truncate
from sdnet.config.errors import ConfigError
from sdnet.models.gates import gated_modules
from sdnet.models.macs import Macs
from sdnet.runs.predictions import Predictions
from tests.analysis.probes.conftest import network
from tests.models.networks import WITH_DROP_PATH


def test_a_stage_is_cut_short_from_its_end(by_gates):
    found, seen = by_gates(lambda closed: 1.0 + len(closed))
    rows = truncate(found)
    assert [(row["stage"], row["blocks_out"]) for row in rows] == [
        *((1, k) for k in range(3)),
        *((2, k) for k in range(4)),
    ]
    assert [closed for _, closed in seen] == [(), (1,), (0, 1), (4,), (3, 4), (2, 3, 4)]
    assert rows[0]["macs"] == rows[3]["macs"] == found.macs.total
    for row in rows:
        assert row["loss"] == pytest.approx(1 + row["blocks_out"], rel=1e-3)


def test_both_branches_of_a_block_go(subject):
    make, size = WITH_DROP_PATH["vit"]
    model, closed = make().eval(), []
    skip_branches(model)

    def note(model, part):
        closed.append([i for i, gate in enumerate(gated_modules(model)) if gate.fixed == 0.0])
        return Predictions.from_logits(np.eye(10, 5), part.labels, "")

    truncate(subject(model, size=size, compute=note))
    assert closed == [[], [4, 5], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def greedy(loss, saved):
    """The search again, from the losses alone."""
    out, steps = [], []
    while len(out) < len(saved):
        left = [gate for gate in range(len(saved)) if gate not in out]
        rise = {gate: loss((*out, gate)) - loss(out) for gate in left}
        falls = [gate for gate in left if rise[gate] <= 0]
        if falls:
            best = max(falls, key=lambda gate: -rise[gate] * saved[gate])
        else:
            best = min(left, key=lambda gate: rise[gate] / saved[gate])
        out.append(best)
        steps.append((best, rise[best] / saved[best] * 1e6))
    return steps


@pytest.mark.parametrize("seed", range(5))
def test_each_step_of_the_front_is_the_best_and_the_first_the_best_lesion(by_gates, seed):
    drawn = random.Random(seed)
    costs = [drawn.uniform(-0.1, 0.3) for _ in range(5)]
    pair = drawn.sample(range(5), 2)

    def loss(closed):
        both = 0.5 if set(pair) <= set(closed) else 0.0  # lesions do not add up
        return 1.0 + sum(costs[gate] for gate in closed) + both

    found, seen = by_gates(loss)
    rows = pareto(found)
    assert [row["step"] for row in rows] == list(range(6))
    expected = greedy(loss, found.saved)
    assert [row["gate"] - 1 for row in rows[1:]] == [gate for gate, _ in expected]
    assert [row["price"] for row in rows[1:]] == pytest.approx([p for _, p in expected], abs=0.05)
    on = [part is found.parts["test"] for part, _ in seen]
    assert (on.count(False), on.count(True)) == (1 + 15, 6)
    left = found.macs.total
    for row in rows[1:]:
        left -= row["saved_macs"]
        assert row["macs"] == left
    table = {row["gate"]: row for row in lesions(found)}
    first = rows[1]
    assert first["validation_loss"] == table[first["gate"]]["validation_loss"]
    assert first["test_error"] == table[first["gate"]]["test_error"]
    assert pareto(found, steps=2) == rows[:3]


def test_what_is_saved_is_what_the_network_without_the_blocks_has_not(subject, swapped_in):
    found = subject(network(shortcut="projection"))
    rows = pareto(found, steps=2)
    model = found.model
    for row in rows[1:]:
        gate = found.layout.gates[row["gate"] - 1]
        path = next(name for name, module in found.model.named_modules() if module is gate)
        shortcut = gate.downsample
        model = swapped_in(model, path, shortcut or nn.Identity())
        assert row["macs"] == Macs(model, (3, 8, 8)).total


def test_a_front_by_some_of_the_validation_images_or_by_none(by_gates, subject):
    found, seen = by_gates(lambda closed: 1.0 + len(closed))
    pareto(found, steps=1, most_images=4, seed=3)
    parts = [part for part, _ in seen if part is not found.parts["test"]]
    assert {len(part) for part in parts} == {4} and len({id(part) for part in parts}) == 1
    with pytest.raises(ConfigError, match="net has none: train"):
        pareto(subject(validation=False))
