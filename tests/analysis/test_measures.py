"""Measures of predictions, against scikit-learn's and against sums written out."""

import itertools

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from sklearn.model_selection import train_test_split

from sdnet.analysis import measures
from sdnet.analysis.measures import (
    adaptive_reliability,
    auarc,
    calibration_error,
    confusion,
    confusion_rows,
    measure,
    per_class,
    reliability,
)
from sdnet.runs.predictions import Predictions
from sdnet.training import evaluation


def made():
    """120 classes, of which some have no image, and a network that is too sure."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 110, 600)
    logits = random.normal(0, 3, (600, 120)) + 12 * np.eye(120)[labels] * random.random((600, 1))
    return Predictions.from_logits(logits, labels, "made")


def real():
    """Of scikit-learn's digits, by a classifier that learnt from a tenth of them."""
    x, y = load_digits(return_X_y=True)
    x, others, y, labels = train_test_split(x / 16, y, train_size=0.1, random_state=0)
    model = LogisticRegression(C=0.1).fit(x, y)
    return Predictions.from_logits(model.predict_log_proba(others), labels, "real")


@pytest.fixture(scope="module", params=[made, real])
def found(request):
    return request.param()


@pytest.fixture(scope="module")
def right(found):
    return found.predicted == found.labels


def probabilities(found):
    return np.exp(found.logits) / np.exp(found.logits).sum(1, keepdims=True)


def test_measures_are_those_of_scikit_learn(found, right):
    p, y, classes = probabilities(found), found.labels, np.arange(found.classes)
    numbers = measure(found)
    assert set(numbers) == set(measures.MEASURES)
    assert numbers["loss"] == pytest.approx(log_loss(y, p, labels=classes), rel=1e-6)
    assert numbers["error"] == pytest.approx(100 * np.mean(p.argmax(1) != y))
    assert numbers["brier"] == pytest.approx(np.square(p - np.eye(len(classes))[y]).sum(1).mean())
    if found.classes >= measures.TOP5_CLASSES:
        top5 = top_k_accuracy_score(y, p, k=5, labels=classes)
        assert numbers["top5_error"] == pytest.approx(100 * (1 - top5))
    else:
        assert numbers["top5_error"] is None
    assert 5 < numbers["error"] < 80  # or else nothing was tried


def test_numbers_are_the_same_where_the_logits_are_not_kept(found, monkeypatch):
    monkeypatch.setattr("sdnet.runs.predictions.MOST", 0)
    short = Predictions.from_logits(found.logits, found.labels, found.order)
    assert short.logits is None
    for name, value in measure(found).items():
        assert measure(short)[name] == (value if value is None else pytest.approx(value, rel=1e-6))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_that_of_scikit_learns_curve(found, right, bins):
    accuracy, confidence = calibration_curve(right, found.confidence, n_bins=bins)
    shown = reliability(found.confidence, right, bins)
    assert [b.accuracy for b in shown] == pytest.approx(accuracy)
    assert [b.confidence for b in shown] == pytest.approx(confidence)
    assert all(b.low <= b.confidence <= b.high for b in shown)
    places = np.ceil(found.confidence * bins)
    counts = np.array([(places == i).sum() for i in np.unique(places)])
    expected = 100 * (counts / len(right) * np.abs(accuracy - confidence)).sum()
    assert calibration_error(shown) == pytest.approx(expected)


def test_adaptive_bins_have_as_many_images_each_as_quantiles_give(found):
    found = Predictions.from_logits(found.logits[:600], found.labels[:600], "")
    right = found.predicted == found.labels
    assert len(np.unique(found.confidence)) == 600
    options = {"n_bins": 15, "strategy": "quantile"}
    accuracy, confidence = calibration_curve(right, found.confidence, **options)
    expected = 100 * np.abs(accuracy - confidence).mean()
    assert calibration_error(adaptive_reliability(found.confidence, right)) == pytest.approx(
        expected
    )


def test_a_confidence_on_a_border_is_in_the_lower_bin():
    (low, high) = reliability(np.array([0.5, 0.5001]), np.array([True, False]), bins=2)
    assert (low.images, low.high, high.images, high.low) == (1, 0.5, 1, 0.5)


def test_the_area_is_the_mean_accuracy_of_what_is_kept(found, right):
    """Written out: the k that are kept are those of the highest confidence."""
    order = sorted(range(len(right)), key=lambda i: -found.confidence[i])
    accuracies = [np.mean(right[order[:k]]) for k in range(1, len(order) + 1)]
    assert len(np.unique(found.confidence)) == len(right)
    assert auarc(found.confidence, right) == pytest.approx(100 * np.mean(accuracies))


def test_images_of_the_same_confidence_count_as_in_the_mean_over_their_orders():
    confidence, right = np.array([0.3, 0.9, 0.3, 0.3]), np.array([True, False, False, True])
    areas = []
    for order in itertools.permutations([0, 2, 3]):
        kept = right[[1, *order]]
        areas.append(np.mean([np.mean(kept[:k]) for k in range(1, 5)]))
    assert auarc(confidence, right) == pytest.approx(100 * np.mean(areas))
    changed = np.array([3, 0, 2, 1])
    for function in (auarc, lambda *x: calibration_error(adaptive_reliability(*x, bins=2))):
        assert function(confidence, right) == function(confidence[changed], right[changed])


def test_classes_and_confusions_are_those_of_scikit_learn(found):
    expected = confusion_matrix(found.labels, found.predicted, labels=np.arange(found.classes))
    assert np.array_equal(confusion(found), expected)
    names = [f"c{i}" for i in range(found.classes)]
    cells = {
        (row["actual"], row["predicted"]): row["count"] for row in confusion_rows(found, names)
    }
    assert cells == {(names[i], names[j]): n for (i, j), n in np.ndenumerate(expected) if n}
    rows = per_class(found, names)
    assert [row["class"] for row in rows] == names
    assert [row["images"] for row in rows] == expected.sum(1).tolist()
    assert [row["predicted"] for row in rows] == expected.sum(0).tolist()
    for i, row in enumerate(rows):
        images = expected[i].sum()
        wrong = 100 * (images - expected[i, i]) / images if images else None
        assert row["error"] == (pytest.approx(wrong) if images else None)
    assert any(row["error"] is None for row in rows) == (found.order == "made")


def test_top_5_errors_are_for_as_many_classes_as_in_training():
    assert measures.TOP5_CLASSES == evaluation.TOP5_CLASSES
