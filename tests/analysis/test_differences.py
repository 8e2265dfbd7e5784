"""What a difference is worth: against scipy, by simulation, and from made run folders."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from sdnet.analysis import difference_text, text
from sdnet.analysis.collect import collect_runs
from sdnet.analysis.difference_text import blocks
from sdnet.analysis.differences import COLUMNS, Difference, compare
from sdnet.analysis.groups import group_runs
from sdnet.analysis.inference import (
    holm,
    mcnemar,
    noise,
    over_both,
    over_images,
    pairs_needed,
    power,
    smallest_shown,
)
from sdnet.analysis.references import find_references
from sdnet.analysis.statistics import summary_row
from sdnet.runs.predictions import Predictions, write_predictions
from tests.analysis.report_runs import LINEAR, write_run

SWEEPS = 2000


def made(sweeps, n, images, of_seed, of_image, lean, seed=0):
    """Differences of two rows' mistakes (sweeps, n, images), and their true mean.

    An image is harder or easier by `of_image`, each network better or worse by `of_seed`, and an
    image harder for the networks of one row than for those of the other by `lean`.
    """
    random = np.random.default_rng(seed)
    effects = random.normal(0, of_image, (sweeps, 1, 1, images))
    effects = effects + random.normal(0, of_seed, (sweeps, 2, n, 1))
    effects = effects + random.normal(0, lean, (sweeps, 2, 1, images))
    threshold = np.array([-1.2, -1.4]) * math.sqrt(1 + of_seed**2 + of_image**2 + lean**2)
    wrong = random.normal(size=effects.shape) < effects + threshold[:, None, None]
    ours, theirs = stats.norm.cdf([-1.2, -1.4])
    return wrong[:, 0].astype(np.int8) - wrong[:, 1], ours - theirs


@pytest.mark.parametrize(
    "n, of_seed, of_image, lean",
    [(2, 0.05, 1.0, 0.2), (3, 0.0, 0.5, 0.3), (3, 0.3, 1.0, 0.3), (5, 0.05, 1.0, 0.8)],
)
def test_the_interval_over_seeds_and_images_holds_the_true_difference(n, of_seed, of_image, lean):
    differences, true = made(SWEEPS, n, 150, of_seed, of_image, lean)
    distance = np.abs(differences.mean((1, 2)) - true)
    assert 0.93 <= (distance <= over_both(differences)).mean() <= 0.97
    assert over_both(differences[3]) == over_both(differences)[3]


def test_equal_seeds_differ_by_the_noise():
    differences, _ = made(SWEEPS, 4, 150, 0.0, 1.0, 0.5)
    assert noise(differences).mean() == pytest.approx(
        differences.mean(-1).var(-1, ddof=1).mean(), rel=0.05
    )
    of_sweep = differences[0] - differences[0].mean(1, keepdims=True) - differences[0].mean(0)
    left = (of_sweep + differences[0].mean()) ** 2
    assert noise(differences)[0] == pytest.approx(left.sum() / (3 * 149) / 150)
    assert noise(np.repeat(differences[0, :1], 4, axis=0)) == pytest.approx(0, abs=1e-12)


def test_neither_seeds_nor_images_alone_are_the_whole_variance():
    differences, true = made(SWEEPS, 5, 150, 0.05, 1.0, 0.8)
    of_seeds = differences.mean(2)
    half = stats.t.ppf(0.975, 4) * of_seeds.std(1, ddof=1) / math.sqrt(5)
    assert (np.abs(of_seeds.mean(1) - true) <= half).mean() < 0.91
    differences, true = made(300, 3, 150, 0.3, 1.0, 0.3)
    ends = np.array([over_images(of_sweep) for of_sweep in differences])
    assert ((ends[:, 0] <= true) & (true <= ends[:, 1])).mean() < 0.8


def test_the_interval_over_images_is_the_bootstraps_and_holds_what_these_networks_would_show():
    differences, true = made(1000, 3, 150, 0.0, 1.0, 0.5)
    images = differences.transpose(1, 0, 2).reshape(3, -1)  # all of a population, the same networks
    ends = np.array([over_images(of_sweep) for of_sweep in differences])
    true = images.mean()
    assert 0.93 <= ((ends[:, 0] <= true) & (true <= ends[:, 1])).mean() <= 0.97
    of_images = images[:, :1000].mean(0)
    options = {"n_resamples": 20_000, "method": "percentile", "batch": 500, "rng": 0}
    wanted = stats.bootstrap((of_images,), np.mean, **options).confidence_interval
    step = 0.2 * of_images.std() / math.sqrt(1000)  # three deviations of such a percentile
    assert over_images(images[:, :1000]) == pytest.approx(tuple(wanted), abs=step)
    assert over_images(images[:, :1000]) == over_images(images[:, :1000])


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_stated_power_is_that_of_t_tests(n):
    shown = smallest_shown(0.7, n)
    pairs = np.random.default_rng(n).normal(shown, 0.7, (20_000, n))
    assert (stats.ttest_1samp(pairs, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.02
    )
    assert power(0.0, 1.0, n) == pytest.approx(0.05) and power(1e4, 1.0, n) == pytest.approx(1)
    assert smallest_shown(1.4, n) == pytest.approx(2 * shown)
    chances = [power(difference, 0.7, n) for difference in np.linspace(0, 3 * shown, 40)]
    assert all(less <= more + 1e-9 for less, more in pairwise(chances))


@pytest.mark.parametrize("difference", [12.0, 5.0, -1.0, 0.3, 0.05])
def test_the_pairs_needed_are_the_fewest(difference):
    n = pairs_needed(difference, 1.0)
    assert power(difference, 1.0, n) >= 0.8 and (n == 2 or power(difference, 1.0, n - 1) < 0.8)
    pairs = np.random.default_rng(0).normal(difference, 1.0, (2_000, n))
    assert (stats.ttest_1samp(pairs, 0, axis=1).pvalue < 0.05).mean() > 0.77
    assert pairs_needed(difference / 1e4, 1.0) is None and pairs_needed(0.0, 1.0) is None


def test_mcnemar_is_the_binomial_of_the_images_on_which_they_differ():
    for ours in range(12):
        for theirs in range(12):
            tail = sum(math.comb(ours + theirs, k) for k in range(min(ours, theirs) + 1))
            wanted = min(1.0, 2 * tail / 2 ** (ours + theirs))
            assert mcnemar(ours, theirs) == pytest.approx(wanted)


def test_holm_rejects_what_his_steps_reject():
    random = np.random.default_rng(0)
    for p in (np.array([0.031, 0.03]), *(random.beta(0.3, 1, count) for count in (1, 6, 19))):
        count = len(p)
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for step, place in enumerate(sorted(range(count), key=lambda i: p[i])):
                if p[place] > level / (count - step):
                    break
                rejected.add(place)
            assert set(np.flatnonzero(holm(p) <= level)) == rejected


# -- of rows --------------------------------------------------------------------------------------


def keep(folder, wrong, order="a"):
    """Predictions of two classes that are wrong where they are to be."""
    labels = np.arange(len(wrong)) % 2
    logits = 3.0 * np.eye(2)[np.where(wrong, 1 - labels, labels)]
    write_predictions(
        folder / "predictions.npz", {"test": Predictions.from_logits(logits, labels, order)}, 1, 1
    )


def write_row(folder, schedule, wrong):
    """A run for each row of `wrong` (n, N), with its predictions."""
    for seed, of_run in enumerate(wrong):
        run = write_run(folder / str(seed), seed, ((1, 100 * of_run.mean()),), schedule=schedule)
        keep(run, of_run)


def rows_of(folder, baseline=None):
    """Of a sweep the differences by p_L, their columns, and what is said of them."""
    groups = group_runs(collect_runs([folder])[0])
    references = find_references(groups, baseline)[1]
    found = compare(groups, references)
    rows = [summary_row(group, found[group.id]) for group in groups]
    said = {block.title.split()[0]: block.lines for block in blocks(groups, found, rows)}
    return {g.p_L: (found[g.id], row, said.get(g.id)) for g, row in zip(groups, rows, strict=True)}


@pytest.fixture
def sweep(tmp_path):
    """Constant depth and p_L 0.5 and 0.8, of four seeds each: (row, seed, image) in `wrong`."""
    random = np.random.default_rng(1)
    hard = random.normal(size=400)
    shift = np.array([-1.6, -1.0, -1.5])[:, None, None] + random.normal(0, 0.1, (3, 4, 1))
    wrong = random.normal(size=(3, 4, 400)) < hard + shift
    for p_L, of_row in zip((1.0, 0.5, 0.8), wrong, strict=True):
        write_row(tmp_path / str(p_L), LINEAR | {"p_L": p_L}, of_row)
    return tmp_path, wrong


def test_the_numbers_of_a_report_are_scipys(sweep):
    folder, wrong = sweep
    constant, half, most = 100 * wrong.mean(2)
    rows = rows_of(folder)
    test = stats.ttest_rel(half, constant)
    found, columns, _ = rows[0.5]
    assert (found.n, found.p) == (4, pytest.approx(test.pvalue))
    assert found.seeds == pytest.approx(tuple(test.confidence_interval()))
    both = [test.pvalue, stats.ttest_rel(most, constant).pvalue]
    holms = [rows[p_L][0].p_holm for p_L in (0.5, 0.8)]
    assert holms == pytest.approx(list(holm(both))) and found.rows == 2
    wanted = stats.dunnett(half, most, control=constant).pvalue
    assert [rows[p_L][0].p_dunnett for p_L in (0.5, 0.8)] == pytest.approx(list(wanted), abs=1e-3)
    for pair, ours, theirs in zip(found.discordant, wrong[1], wrong[0], strict=True):
        assert (pair.ours, pair.theirs) == ((ours & ~theirs).sum(), (theirs & ~ours).sum())
        assert pair.p == mcnemar(pair.ours, pair.theirs)
    differences = wrong[1].astype(int) - wrong[0]
    assert found.images == pytest.approx(tuple(100 * end for end in over_images(differences)))
    middle, end = 100 * differences.mean(), 100 * over_both(differences)
    assert found.both == pytest.approx((middle - end, middle + end))
    assert found.shown_by_n == smallest_shown((half - constant).std(ddof=1), 4)
    assert [columns[name] for name in COLUMNS[:3]] == pytest.approx([middle, *found.seeds])
    assert None not in [columns[name] for name in COLUMNS]
    reference = rows[1][1]
    assert {reference[name] for name in COLUMNS} == {None} and reference["difference_n"] == 0


def test_swapped_rows_swap_signs_and_nothing_else(sweep):
    folder, _ = sweep
    there, back = rows_of(folder)[0.5][0], rows_of(folder, "schedule.p_L=0.5")[1][0]
    for name, chance in (("seeds", 1e-9), ("both", 1e-9), ("images", 0.25)):
        low, high = getattr(back, name)
        assert getattr(there, name) == pytest.approx((-high, -low), abs=chance)
    assert (there.mean, there.p) == (pytest.approx(-back.mean), pytest.approx(back.p))
    assert (there.shown_by_n, there.pairs_needed) == (
        pytest.approx(back.shown_by_n),
        back.pairs_needed,
    )
    ours = [(pair.ours, pair.theirs, pair.p) for pair in there.discordant]
    assert ours == [(pair.theirs, pair.ours, pair.p) for pair in back.discordant]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda run, wrong: (run / "predictions.npz").unlink(), "0: it kept no predictions.npz"),
        (lambda run, wrong: (run / "predictions.npz").write_bytes(b"PK"), "0: unreadable: "),
        (lambda run, wrong: keep(run, wrong, "b"), "the runs had several test sets"),
        (lambda run, wrong: keep(run, ~wrong), "0: predictions.npz is not of the test error"),
    ],
)
def test_without_predictions_a_line_says_what_is_missing(sweep, change, reason):
    folder, wrong = sweep
    before = rows_of(folder)[0.5][0]
    change(folder / "0.5" / "0", wrong[1, 0])
    found, _, lines = rows_of(folder)[0.5]
    assert found.missing.startswith(reason) and not found.discordant
    assert f"Of test images nothing can be said: {found.missing}." in lines
    assert found.images is None is found.both
    assert (found.p, found.seeds, found.p_holm) == (before.p, before.seeds, before.p_holm)
    assert rows_of(folder)[0.8][0].images is not None  # the other row has all of its own


def test_few_seeds_are_told_what_they_cannot_show(tmp_path):
    errors = {1.0: (5.0, 5.2, 5.1, 5.3, 5.0, 5.2), 0.5: (4.0, 4.4, 4.1, 4.2, 3.9, 4.3)}
    never = "No sign or rank test of {} pairs can be significant: the smallest p"
    for n in range(1, 7):
        for p_L, of_row in errors.items():
            test_error = ((1, of_row[n - 1]),)
            write_run(tmp_path / f"{p_L}-{n}", n, test_error, schedule=LINEAR | {"p_L": p_L})
        found, _, lines = rows_of(tmp_path)[0.5]
        said = " ".join(lines)
        smallest = stats.wilcoxon(np.arange(1.0, n + 1)).pvalue
        assert (never.format(n) in said) == (n > 1 and smallest > 0.05)
        assert f"{smallest:g}." in said or n in (1, 6)
        if n == 1:
            assert "of other seeds nothing can be said" in said and found.p is None
            one = "Test error 1.00 points lower, with one seed"
            assert lines[0] == f"{one}. No difference of the methods is shown."
    assert lines[0].startswith("Test error 0.98 points lower [-1.") and lines[0].endswith(
        ". A difference is shown."
    )
    assert f"6 pairs show a difference of {found.shown_by_n:.2f} in 80 of 100 sweeps" in said


def test_one_seed_has_intervals_of_images_alone(tmp_path):
    wrong = np.zeros((2, 1, 200), dtype=bool)
    wrong[0, :, :5], wrong[1, :, 3:20] = True, True
    for p_L, of_row in zip((1.0, 0.5), wrong, strict=True):
        write_row(tmp_path / str(p_L), LINEAR | {"p_L": p_L}, of_row)
    found, _, lines = rows_of(tmp_path)[0.5]
    assert found.seeds is found.both is found.shown_by_n is None
    assert found.p == mcnemar(15, 3) and found.images[0] > 0
    assert "by McNemar's test, of these two networks alone." in " ".join(lines)
    assert "No difference of the methods is shown" in lines[0]


def test_what_other_images_may_reverse_is_not_shown(tmp_path):
    wrong = np.zeros((2, 3, 100), dtype=bool)
    wrong[1, :, :3] = wrong[1, 2, 3] = True  # 3, 3 and 4 points: of the same few images
    for p_L, of_row in zip((1.0, 0.5), wrong, strict=True):
        write_row(tmp_path / str(p_L), LINEAR | {"p_L": p_L}, of_row)
    found, _, lines = rows_of(tmp_path)[0.5]
    assert found.p < 0.01 and found.seeds[0] > 1.5 and found.both[0] < 0
    assert lines[0] == "Test error 3.33 points higher [-0.31, +6.98]. No difference is shown."


def test_seeds_that_happen_to_agree_show_no_more_than_their_images(tmp_path):
    random = np.random.default_rng(2)
    wrong = np.zeros((2, 3, 400), dtype=bool)
    for seed, more in enumerate((7, 7, 8)):  # 1.75, 1.75 and 2 points, each of other images
        places = random.permutation(400)
        wrong[0, seed, places[:30]] = wrong[1, seed, places[30 : 60 + more]] = True
    for p_L, of_row in zip((1.0, 0.5), wrong, strict=True):
        write_row(tmp_path / str(p_L), LINEAR | {"p_L": p_L}, of_row)
    found, _, lines = rows_of(tmp_path)[0.5]
    assert found.p < 0.01 and found.both[0] > 0 > found.images[0] and found.widest is found.images
    low, high = found.images
    assert (
        lines[0]
        == f"Test error 1.83 points higher [{low:+.2f}, {high:+.2f}]. No difference is shown."
    )
    by_chance = 100 * math.sqrt(noise(wrong[1].astype(int) - wrong[0]))
    assert found.shown_by_n == pytest.approx(smallest_shown(by_chance, 3)) and by_chance > 1.5


def test_of_many_rows_one_differs_by_chance(tmp_path):
    errors = {1.0: [5.0, 5.2, 5.1], 0.5: [5.4, 5.8, 5.8]}
    errors |= {p_L: [5.1, 5.0, 5.2] for p_L in (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)}
    for p_L, of_row in errors.items():
        for seed, error in enumerate(of_row):
            run = tmp_path / f"{p_L}-{seed}"
            write_run(run, seed, ((1, error),), schedule=LINEAR | {"p_L": p_L})
    found, _, lines = rows_of(tmp_path)[0.5]
    assert found.p < 0.05 < found.p_holm == pytest.approx(7 * found.p)
    assert "Of 7 rows one may differ so by chance: no difference is shown" in lines[0]


@pytest.mark.filterwarnings("error")
def test_pairs_that_differ_by_the_same_say_nothing_of_other_seeds(tmp_path):
    wrong = np.zeros((4, 3, 1000), dtype=bool)
    wrong[:, :, :111] = wrong[1, :, 111:121] = True  # a point more; as much; some more, some less
    wrong[3, 0, 111:116] = wrong[3, 1, 111:117] = True
    for p_L, of_row in zip((1.0, 0.5, 0.8, 0.9), wrong, strict=True):
        write_row(tmp_path / str(p_L), LINEAR | {"p_L": p_L}, of_row)
    rows = rows_of(tmp_path)
    for p_L, size in ((0.5, "Test error 1.00 points higher"), (0.8, "Test error equal")):
        found, columns, lines = rows[p_L]
        assert found.p is found.seeds is found.both is found.shown_by_n is None
        assert columns["difference_low"] is columns["difference_both_low"] is None  # not 1 to 1
        assert found.p_dunnett is not None and found.images is not None
        nothing = "All pairs differ by the same, so of other seeds nothing is known."
        assert lines[0] == f"{size}. {nothing}"
        assert not any(line.startswith("For other seeds") for line in lines)
    tested = rows[0.9][0]  # alone, so there is nothing to adjust for
    assert tested.p is not None and tested.p_holm is None and tested.rows == 1


def test_what_rounds_to_nothing_has_no_sign():
    found = Difference(None, {0: -1e-4, 1: 1e-4}, seeds=(-1e-3, 1e-3))
    row = {"times_not_comparable": "", "time_saving": -1e-5, "gates_saving": -1e-9}
    row |= {"time_saving_low": -2e-5, "time_saving_high": -0.0}
    row |= {"reference": "a", "id": "b", "difference_n": 2, "n": 2, "difference_mean": -1e-4}
    row |= {"difference_low": -1e-3, "difference_high": 1e-3}
    said = [*difference_text._lines(found, row), text._difference(row), text._saving(row)]
    assert "-0.0" not in (said := " ".join(said)) and "-0 " not in said and "-0," not in said
    assert text._difference(row) == "+0.00 [+0.00, +0.00]"


@pytest.mark.parametrize(
    "seconds, said",
    [
        ((754.71, 1129.6), "755 ± 1130"),
        ((69.71, 0.356), "69.7 ± 0.4"),
        ((99.97, 99.7), "100.0 ± 99.7"),
        ((0.04567, None), "0.0457"),
    ],
)
def test_seconds_are_written_out(seconds, said):
    assert text._seconds(*seconds) == said
