import numpy as np
import pytest
import torch
from scipy.stats import entropy

from sdnet import Constant, LinearDecay
from sdnet.analysis.measures import measure
from sdnet.analysis.probes.averages import averaged, compare, ensemble, monte_carlo
from sdnet.config.errors import ConfigError
from sdnet.models.gates import gated_modules
from sdnet.runs.predictions import Predictions
from tests.analysis.probes.conftest import compute, network

LABELS = np.arange(10) % 5


def predictions(seed, order=""):
    logits = np.random.default_rng(seed).normal(0, 2, (10, 5))
    return Predictions.from_logits(logits, LABELS, order)


@pytest.mark.parametrize("rescale", ["eval", "train", "none"])
def test_where_every_gate_survives_it_is_full_depth_exactly(subject, rescale):
    found = subject(network(schedule=Constant(), rescale=rescale))
    full, average = found.predict("test"), monte_carlo(found, 3, seed=0)
    assert np.array_equal(average.mean.logits, full.logits)
    assert measure(average.mean) == measure(full)
    assert (average.information == 0).all()


@pytest.mark.parametrize(("rescale", "granularity"), [("eval", "batch"), ("train", "sample")])
def test_gates_are_drawn_with_their_survival_and_weighted_as_in_training(
    subject, rescale, granularity
):
    drawn = []

    def note(model, part):
        assert not any(module.training for module in model.modules())
        drawn.append([gate.fixed for gate in gated_modules(model)])
        return predictions(0)

    schedule = LinearDecay(0.5)
    model = network(schedule=schedule, rescale=rescale, granularity=granularity)
    found, n = subject(model, compute=note), 400
    monte_carlo(found, n, seed=0)
    weights, p = np.array(drawn), np.array(found.survival)
    assert (abs((weights > 0).sum(0) - n * p) < 5 * np.sqrt(n * p * (1 - p))).all()
    scale = 1 / p if rescale == "train" else np.ones(5)
    assert ((weights == 0) | np.isclose(weights, scale)).all()
    assert {gate.fixed for gate in found.layout.gates} == {None}
    first, again = drawn[:2], []
    monte_carlo(subject(model, compute=note), 2, seed=0)
    again, other = drawn[n:], len(drawn)
    assert again == first
    monte_carlo(subject(model, compute=note), 2, seed=1)
    assert drawn[other:] != first


def test_a_draw_is_the_network_in_training_mode_with_those_gates(subject):
    """BatchNorm apart, which is in evaluation mode."""
    model = network(rescale="train")
    found = subject(model)
    with torch.no_grad():
        average = monte_carlo(found, 1, seed=4)
        weights = []
        monte_carlo(subject(model, compute=lambda m, p: _note(m, weights)), 1, seed=4)
        for gate, weight in zip(found.layout.gates, weights, strict=True):
            gate.train()
            for child in gate.children():
                child.eval()
            gate.gate = weight > 0
        assert 0 < sum(weight > 0 for weight in weights) < 5
        logits = torch.cat([model(x) for x, _ in found.batches(found.parts["test"])])
    expected = Predictions.from_logits(logits, LABELS, "")
    assert average.mean.logits == pytest.approx(expected.logits, abs=1e-2)
    model.eval()
    assert compute(model, found.parts["test"]).logits != pytest.approx(expected.logits, abs=0.1)


def _note(model, weights):
    weights += [gate.fixed for gate in gated_modules(model)]
    return predictions(0)


def test_averages_by_hand():
    members = [predictions(seed) for seed in range(3)]
    average = ensemble(members)
    each = [np.exp(member.logits) for member in members]
    each = [exp / exp.sum(1, keepdims=True) for exp in each]
    mean = np.mean(each, axis=0)
    assert np.exp(average.mean.log_probabilities) == pytest.approx(mean, rel=5e-3)
    assert average.entropy == pytest.approx(entropy(mean, axis=1))
    inside = np.mean([entropy(one, axis=1) for one in each], axis=0)
    assert average.information == pytest.approx(entropy(mean, axis=1) - inside)
    assert (average.information > 0).all() and average.members == 3
    far = np.zeros((1, 2)), np.array([[0.0, -60000.0]])
    some = [Predictions.from_logits(logits, [1], "") for logits in far]
    assert averaged(some).mean.log_likelihood == pytest.approx(np.log(0.25), rel=1e-3)


def test_an_ensemble_is_of_the_same_images():
    with pytest.raises(ConfigError, match="predictions of the same images"):
        ensemble([predictions(0, "a"), predictions(1, "b")])


def test_the_table_has_the_measures_of_each():
    full, average = predictions(0), ensemble([predictions(seed) for seed in range(3)])
    first, second = compare({"full depth": full, "ensemble": average})
    assert first.items() >= measure(full).items() and first["information"] == 0.0
    assert second.items() >= measure(average.mean).items() and second["members"] == 3
    assert first["auarc_information"] is None
    # Rejected one by one by mutual information, the highest first.
    right = average.mean.predicted == LABELS
    kept = [right[np.argsort(average.information)[:k]].mean() for k in range(1, 11)]
    assert second["auarc_information"] == pytest.approx(100 * np.mean(kept))
    kept = [right[np.argsort(average.entropy)[:k]].mean() for k in range(1, 11)]
    assert second["auarc_entropy"] == pytest.approx(100 * np.mean(kept))
