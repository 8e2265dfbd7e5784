"""Which times a report compares."""

import math
from pathlib import Path

import pytest

from sdnet.analysis.collect import Run
from sdnet.analysis.statistics import times_differ
from tests.analysis.report_runs import CONSTANT, LINEAR, report, row_with, write_run


@pytest.mark.parametrize(
    "summary, where, reason",
    [
        ({}, {"threads": 2}, "threads 1, 2"),
        ({}, {"device_name": "CPU Y"}, "device_name CPU X, CPU Y"),
        ({}, {"processes": 2}, "processes 1, 2"),
        (
            {},
            {"resumed": [{"device": "cpu", "device_name": "CPU X", "threads": 4}]},
            "threads 1, 4",
        ),
        ({"other_load": 0.4}, {}, "load by other programs 0.10 to 0.40 cores"),
        ({"other_load": None}, {}, "load by other programs unknown"),
        ({"train_seconds": 59.0}, {}, "a training of 59 seconds, less than 60"),
        ({"other_load": 0.34}, {"resumed": [{"git_commit": None}]}, ""),
    ],
)
def test_times_compare_only_on_equal_terms(tmp_path, summary, where, reason):
    for seed in (0, 1):
        write_run(tmp_path / f"constant-{seed}", seed, schedule=CONSTANT)
        seconds = {"seconds_per_epoch": 7.5 + 2 * seed}
        write_run(tmp_path / f"linear-{seed}", seed, ((1, 2),), seconds | summary, where)
    result, printed = report(tmp_path)
    row = row_with(result, schedule="linear_decay")
    assert row["times_not_comparable"] == reason
    if not reason:
        assert row["time_saving"] == pytest.approx(1 - math.sqrt(7.5 / 10 * 9.5 / 11))
        ends = [row["time_saving_low"], row["time_saving_high"]]
        assert f"19.5 % [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]" in printed
    else:
        assert math.isnan(row["time_saving"]) and "not comparable" in printed
        assert (
            f"No figure of error against time: not all times are comparable ({reason})" in printed
        )


@pytest.mark.parametrize(
    "active, macs, settings, reason",
    [
        (5.8, None, {}, ""),  # 40 % saved of the time, 3.2 of 9 blocks skipped
        (6.0, 50, {}, ""),  # half of the multiply-adds
        (7.0, None, {}, "40.0 % saved, more than the 22.2 % that gates skip"),
        (6.0, 80, {}, "40.0 % saved, more than the 20.0 % that gates skip"),
        (6.0, None, {"model__granularity": "sample"}, "40.0 % saved, more than the 0.0 % that"),
    ],
)
def test_more_time_than_gates_save_is_not_comparable(tmp_path, active, macs, settings, reason):
    for name, of_run in (
        ("linear", {"mean_active_blocks": active, "seconds_per_epoch": 6.0}),
        ("constant", {"mean_active_blocks": 9, "seconds_per_epoch": 10.0}),
    ):
        if macs is not None:  # of 3 epochs; the row beside it has trained as much in more of them
            share, epochs = (1, 3) if name == "constant" else (macs / 100, 4)
            of_run |= {"training_macs": 7e13 * share * epochs, "epochs": epochs}
        schedule = LINEAR if name == "linear" else CONSTANT
        write_run(tmp_path / name, 0, summary=of_run, schedule=schedule, **settings)
    row = row_with(report(tmp_path, baseline="schedule=constant")[0], schedule="linear_decay")
    assert row["times_not_comparable"].startswith(reason)
    assert bool(row["times_not_comparable"]) == bool(reason) == math.isnan(row["time_saving"])


@pytest.mark.parametrize(
    "seconds, plausible", [(3.0, False), (5.2, True), (8.0, True), (12.0, True)]
)
def test_times_compare_whichever_row_is_the_baseline(tmp_path, seconds, plausible):
    linear = {"mean_active_blocks": 4.5, "seconds_per_epoch": seconds}
    write_run(tmp_path / "linear", 0, summary=linear, schedule=LINEAR)
    constant = {"mean_active_blocks": 9, "seconds_per_epoch": 10.0}
    write_run(tmp_path / "constant", 0, summary=constant, schedule=CONSTANT)
    there = row_with(report(tmp_path)[0], schedule="linear_decay")
    back = row_with(report(tmp_path, baseline="schedule.p_L=0.5")[0], schedule="constant")
    for row in (there, back):
        assert (row["times_not_comparable"] == "") == plausible
    if plausible:
        assert (1 - there["time_saving"]) * (1 - back["time_saving"]) == pytest.approx(1)
    else:
        said = "70.0 % saved{}, more than the 50.0 % that gates skip"
        assert there["times_not_comparable"] == said.format("")
        assert back["times_not_comparable"] == said.format(" by the reference")
        assert "No figure of error against time: not all times are" in report(tmp_path)[1]


def test_what_else_differs_may_save_any_time(tmp_path):
    write_run(tmp_path / "deep", model__depth=56, summary={"seconds_per_epoch": 100.0})
    write_run(tmp_path / "flat", summary={"seconds_per_epoch": 10.0})
    row = row_with(report(tmp_path, baseline="model.depth=56")[0], model__depth=20)
    assert row["time_saving"] == pytest.approx(0.9) and math.isnan(row["gates_saving"])


GPU = {"device": "cuda", "device_name": "GPU X", "processor": "CPU X", "cores": 8, "per_gpu": 1}
FORMER = {"device": "cuda", "device_name": "GPU X"}  # of runs that did not note their processor


@pytest.mark.parametrize(
    "one, other, loads, reason",
    [
        (GPU, {"threads": 7}, (0, 0), None),  # one thread starts a GPU's work
        (GPU, {"device_name": "GPU Y"}, (0, 0), "device_name GPU X, GPU Y"),
        (GPU, {"processor": "CPU Y"}, (0, 0), "processor CPU X, CPU Y"),
        (GPU, {"processes": 2}, (0, 0), "processes 1, 2"),
        (GPU, {"per_gpu": 3}, (0, 0), "3 runs at once on a GPU"),
        (GPU | {"per_gpu": 3}, {}, (0, 0), "3 runs at once on a GPU"),  # not always as many
        (GPU, {}, (0, 4.0), None),  # half of the cores are left
        (GPU, {}, (0, 4.1), "load by other programs 0.00 to 4.10 cores"),
        (GPU, {}, (4.1, 4.2), None),
        (GPU, {"cores": 6}, (0, 4.0), "load by other programs 0.00 to 4.00 cores"),
        (GPU, {"cores": "many"}, (0, 4.0), "load by other programs 0.00 to 4.00 cores"),
        (FORMER, {}, (0, 0.25), None),
        (FORMER, {}, (0, 0.3), "load by other programs 0.00 to 0.30 cores"),
        (FORMER, {"processor": "CPU X"}, (0, 0), "processor CPU X, unknown"),
        (FORMER, {"device": "cpu"}, (0, 0), "device cpu, cuda"),
    ],
)
def test_times_on_gpus_depend_on_the_processor_and_on_a_load_that_leaves_it_no_core(
    one, other, loads, reason
):
    runs = [
        Run(Path(), {}, {"other_load": load, "train_seconds": 60}, {"threads": 1} | where, [])
        for load, where in zip(loads, (one, one | other), strict=True)
    ]
    assert times_differ(runs) == times_differ(runs[::-1]) == reason
