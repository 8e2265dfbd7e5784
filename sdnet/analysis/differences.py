"""What the difference of two rows is worth: over seeds, over test images, and over both.

Runs are paired by seed and, where they kept their predictions, image by image. Errors are percent,
differences percentage points.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from sdnet.analysis.collect import Run
from sdnet.analysis.groups import Group
from sdnet.analysis.inference import (
    Ends,
    holm,
    mcnemar,
    noise,
    over_both,
    over_images,
    pairs_needed,
    smallest_shown,
)
from sdnet.runs.folder import RunFolder
from sdnet.runs.predictions import read_predictions
from sdnet.runs.shown import visible

NUMBERS = ("mean", "low", "high", "images_low", "images_high", "both_low", "both_high")
NUMBERS += ("p", "p_holm", "p_dunnett", "shown_by_n", "pairs_needed")
SAME = 1e-6  # points: errors that differ by less were written with as many digits
COLUMNS = tuple(f"difference_{name}" for name in NUMBERS)  # that a row may be without


class Wrong(NamedTuple):
    """Which test images a run has wrong, in the order of that name."""

    order: str
    images: np.ndarray


class Discordant(NamedTuple):
    """Of a pair of runs: how many images ours alone has wrong, and theirs alone; exact McNemar."""

    seed: int
    ours: int
    theirs: int
    p: float


@dataclass
class Difference:
    """Of a row's test error to its reference's: its own minus theirs, paired by seed.

    Attributes:
        errors: of each pair, by its seed.
        seeds, images, both: the 95 % interval of their mean for other seeds; for other images and
            these runs; for other seeds and images. None where nothing is known of the former.
        discordant: of each pair, image by image; empty where `missing` says why.
        p: of the paired t-test; of a single pair McNemar's.
        p_holm, p_dunnett: adjusted for all rows with this reference: p, and the unpaired test.
        rows: how many rows Holm's is adjusted for.
        shown_by_n: what so many pairs show in 80 of 100 sweeps. pairs_needed: to show the mean so.
    """

    reference: Group | None
    errors: dict[int, float] = field(default_factory=dict)
    seeds: Ends | None = None
    images: Ends | None = None
    both: Ends | None = None
    discordant: list[Discordant] = field(default_factory=list)
    missing: str = ""
    p: float | None = None
    p_holm: float | None = None
    p_dunnett: float | None = None
    rows: int = 1
    shown_by_n: float | None = None
    pairs_needed: int | None = None

    @property
    def n(self) -> int:
        return len(self.errors)

    @property
    def mean(self) -> float | None:
        return float(np.mean(list(self.errors.values()))) if self.errors else None

    @property
    def widest(self) -> Ends | None:
        """Of the intervals. Seeds that happen to agree make those narrow that they are in."""
        known = [ends for ends in (self.both, self.seeds, self.images) if ends is not None]
        return max(known, key=lambda ends: ends[1] - ends[0], default=None)

    def columns(self) -> dict[str, Any]:
        """Those of report.csv."""
        ends = [self.seeds, self.images, self.both]
        values = [self.mean, *(end for pair in ends for end in pair or (None, None))]
        values += [self.p, self.p_holm, self.p_dunnett, self.shown_by_n, self.pairs_needed]
        return {
            "reference": self.reference.id if self.reference is not None else "",
            "difference_n": self.n,
            **dict(zip(COLUMNS, values, strict=True)),
            "mcnemar_p": " ".join(f"{pair.p:.6g}" for pair in self.discordant),
        }


def pairs_of(group: Group, reference: Group | None) -> list[tuple[Run, Run]]:
    """The runs of two rows with the same seed."""
    if reference is None or reference is group:
        return []
    others = reference.by_seed
    return [(run, others[run.seed]) for run in group.runs if run.seed in others]


def compare(
    groups: Sequence[Group], references: Mapping[str, Group | None]
) -> dict[str, Difference]:
    """The difference of each group, by its id, to its reference."""
    known: dict[Path, Wrong | str] = {}  # each run is read once
    found = {g.id: _compared(g, references.get(g.id), known) for g in groups}
    for reference in groups:
        rows = [g for g in groups if g is not reference and references.get(g.id) is reference]
        if len(rows) > 1:
            _adjust(reference, rows, [found[row.id] for row in rows])
    return found


def _compared(group: Group, reference: Group | None, known: dict[Path, Wrong | str]) -> Difference:
    pairs = pairs_of(group, reference)
    result = Difference(reference)
    result.errors = {a.seed: a.summary["test_error"] - b.summary["test_error"] for a, b in pairs}
    if len(pairs) > 1:
        _over_seeds(result)
    least = 0.0  # that pairs deviate by
    if pairs:
        try:
            least = _over_images(result, _by_image(pairs, known))
        except ValueError as reason:
            result.missing = str(reason)
    if result.seeds:
        deviation = max(float(np.std(list(result.errors.values()), ddof=1)), least)
        result.shown_by_n = smallest_shown(deviation, result.n)
        result.pairs_needed = pairs_needed(result.mean or 0.0, deviation)
    return result


def _over_seeds(result: Difference) -> None:
    errors = np.array(list(result.errors.values()))
    if errors.std(ddof=1) < SAME:  # all pairs differ alike: of how others would, nothing is known
        return
    test = stats.ttest_1samp(errors, 0.0)
    low, high = test.confidence_interval(0.95)
    result.p, result.seeds = float(test.pvalue), (float(low), float(high))


def _over_images(result: Difference, differences: np.ndarray) -> float:
    """Of what `_by_image` finds. Returns the deviation of pairs that would be there in any case."""
    for seed, of_pair in zip(result.errors, differences, strict=True):
        ours, theirs = int((of_pair > 0).sum()), int((of_pair < 0).sum())
        result.discordant.append(Discordant(seed, ours, theirs, mcnemar(ours, theirs)))
    low, high = over_images(differences)
    result.images = (100 * low, 100 * high)
    if result.n == 1:
        result.p = result.discordant[0].p
        return 0.0
    if result.seeds:
        half = 100 * float(over_both(differences))
        result.both = (100 * differences.mean() - half, 100 * differences.mean() + half)
    return 100 * float(noise(differences)) ** 0.5


def _by_image(pairs: Sequence[tuple[Run, Run]], known: dict[Path, Wrong | str]) -> np.ndarray:
    """(n, N), image by image: 1 where ours alone is wrong, -1 where theirs alone is.

    Raises:
        ValueError: why there is nothing to be had.
    """
    found = []
    for run in (run for pair in pairs for run in pair):
        if run.folder not in known:
            known[run.folder] = _wrong(run)
        if isinstance(wrong := known[run.folder], str):
            raise ValueError(f"{visible(run.folder.name)}: {wrong}")
        found.append(wrong)
    if len({wrong.order for wrong in found}) > 1:
        raise ValueError("the runs had several test sets, or one in several orders")
    images = np.array([wrong.images for wrong in found], dtype=np.int8)
    return images[::2] - images[1::2]


def _wrong(run: Run) -> Wrong | str:
    """Which images a run has wrong, or why that is not known."""
    try:
        parts = read_predictions(RunFolder(run.folder).predictions)
        if parts is None:
            return "it kept no predictions.npz"
        part = parts["test"]
        wrong = part.predicted != part.labels
        reported = run.summary["test_error"] / 100 * len(wrong)
        if len(wrong) < 2 or abs(wrong.sum() - reported) > max(1.5, len(wrong) / 1000):
            return "predictions.npz is not of the test error that summary.json reports"
        return Wrong(part.order, wrong)
    except Exception as error:  # what a folder from elsewhere holds there costs no more than this
        return f"unreadable: {visible(str(error))}"


def _adjust(reference: Group, rows: Sequence[Group], found: Sequence[Difference]) -> None:
    """For many rows against one, of which by chance alone one differs most."""
    tested = [difference for difference in found if difference.p is not None]
    if len(tested) > 1:
        for difference, p in zip(tested, holm([d.p for d in tested]), strict=True):
            difference.p_holm, difference.rows = float(p), len(tested)
    errors = [[run.summary["test_error"] for run in row.runs] for row in (reference, *rows)]
    if max(map(np.ptp, errors)) > SAME:  # else there is no deviation to compare with
        with warnings.catch_warnings():  # of a row whose runs are equal: its variance is right, 0
            warnings.simplefilter("ignore", RuntimeWarning)
            unpaired = stats.dunnett(*errors[1:], control=errors[0], rng=np.random.default_rng(0))
        for difference, p in zip(found, unpaired.pvalue, strict=True):
            difference.p_dunnett = float(p)
