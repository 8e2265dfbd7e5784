"""Averages of several networks' predictions: gates drawn at test time, or the seeds of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdnet import rng
from sdnet.analysis.measures import auarc, measure
from sdnet.analysis.probes.subject import Subject
from sdnet.config.errors import ConfigError
from sdnet.models.gates import fixed_weights
from sdnet.runs.predictions import Predictions


@dataclass(frozen=True)
class Average:
    """The mean probabilities of several networks for N images, and how far these agree.

    Attributes:
        mean: the mean probabilities, as predictions.
        members: how many networks.
        entropy: (N,) of the mean, in nats: how unsure all together are.
        information: (N,) the mutual information of the class and the network, in nats: the entropy
            of the mean less the mean of the entropies, which is 0 where all say the same.
    """

    mean: Predictions
    members: int
    entropy: np.ndarray
    information: np.ndarray


def monte_carlo(subject: Subject, n: int, seed: int, part: str = "test") -> Average:
    """The average of n networks whose gates are drawn with their p_l.

    A draw is one network for all images, whatever the granularity. All else is in evaluation mode,
    BatchNorm too. An open gate has the factor of training: 1, or 1/p_l with `rescale=train`.
    """

    def draws() -> Iterable[Predictions]:
        for draw in range(n):
            uniform = rng.generator(seed, "monte-carlo", draw).random(len(subject.survival))
            weights = {
                gate: (1 / p if gate.rescale == "train" else 1.0) if u < p else 0.0
                for gate, p, u in zip(subject.layout.gates, subject.survival, uniform, strict=True)
            }
            with fixed_weights(weights):
                yield subject.predict(part)

    return averaged(draws())


def ensemble(members: Sequence[Predictions]) -> Average:
    """The average of several runs, e.g. the seeds of a group.

    Raises:
        ConfigError: they are not of the same images and classes.
    """
    if len({(found.order, found.classes) for found in members}) > 1:
        raise ConfigError(
            "an ensemble needs predictions of the same images, these runs have others"
        )
    return averaged(members)


def averaged(several: Iterable[Predictions]) -> Average:
    total: np.ndarray | None = None  # log of the sum of the probabilities: none is too small
    entropies, count = 0.0, 0
    for found in several:
        logs = found.log_probabilities
        total = logs if total is None else np.logaddexp(total, logs)
        entropies = entropies + _entropy(logs)
        count += 1
    assert total is not None
    logs = total - np.log(count)
    entropy = _entropy(logs)
    mean = Predictions.from_logits(logs, found.labels, found.order)
    information = (entropy - entropies / count).round(12)  # 0, not its rounding error
    return Average(mean, count, entropy, information)


def _entropy(logs: np.ndarray) -> np.ndarray:
    return -(np.exp(logs) * np.maximum(logs, -1e9)).sum(1)  # 0 for a probability of 0


def compare(named: Mapping[str, Predictions | Average]) -> list[dict[str, Any]]:
    """The measures of each by its name; rejecting by entropy and by mutual information too."""
    rows = []
    for name, found in named.items():
        average = found if isinstance(found, Average) else averaged([found])
        right = average.mean.predicted == average.mean.labels
        several = average.members > 1
        row = {"name": name, "members": average.members, **measure(average.mean)}
        row["auarc_entropy"] = auarc(-average.entropy, right)
        row["auarc_information"] = auarc(-average.information, right) if several else None
        row["entropy"] = float(average.entropy.mean())
        row["information"] = float(average.information.mean())
        rows.append(row)
    return rows
