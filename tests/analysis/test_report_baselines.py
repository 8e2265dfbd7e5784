"""Which row a report compares with."""

import re

import pytest

from sdnet.analysis.report import ReportError
from tests.analysis.report_runs import LINEAR, report, row_with, rows_of, write_run


def test_constant_depth_is_the_baseline_whoever_said_so(tmp_path):
    own = {"_target_": "mine.Rising", "name": "rising", "p_0": 0.5}
    blocks = {"expected_active_blocks": 9, "mean_active_blocks": 9}
    rising = {"expected_active_blocks": 9, "mean_active_blocks": 7}  # only at its end
    write_run(tmp_path / "a", 0, schedule=LINEAR | {"p_L": 1.0})
    write_run(tmp_path / "b", 1, summary=blocks, schedule=own)
    same = write_run(tmp_path / "c", 0, summary=blocks, schedule=own)
    write_run(tmp_path / "d", 1, summary=rising, schedule=own)
    result, _ = report(tmp_path)
    baseline = row_with(result, schedule="constant")
    assert baseline["seeds"] == "0 1" and baseline["expected_saving"] == 0
    assert [item.folder for item in result.left_out] == [same]
    other = row_with(result, schedule="rising")
    assert other["reference"] == baseline["id"] and other["difference_n"] == 1
    assert other["command"] == (
        "SDNET_ALLOW_TARGETS=mine.Rising python train.py schedule=rising seed=1"
    )


@pytest.mark.parametrize(
    "spec, row, reference",
    [
        (None, (56, "uniform", 0.8), (56, "constant", 1)),
        ("schedule.p_L=0.80", (56, "uniform", 0.5), (56, "uniform", 0.8)),
        ("schedule.p_L=1", (20, "linear_decay", 0.5), (20, "constant", 1)),
        ("schedule.p_L=0.8", (20, "constant", 1), None),  # of which schedule?
        ("model.depth=20", (56, "linear_decay", 0.8), (20, "linear_decay", 0.8)),
        ("model.depth=20", (56, "constant", 1), (20, "constant", 1)),
        ("schedule=uniform", (20, "linear_decay", 0.5), (20, "uniform", 0.5)),
        ("schedule=linear_decay", (56, "uniform", 0.8), (56, "linear_decay", 0.8)),
        ("schedule=uniform", (20, "constant", 1), None),  # with which p_L?
    ],
)
def test_the_baseline_can_be_any_value(grid, spec, row, reference):
    result, _ = report(grid, baseline=spec)

    def find(depth, schedule, p_L):
        return row_with(
            result,
            model__depth=depth,
            schedule=schedule,
            schedule__p_L=p_L,
            optimizer__skipped_update="decay",
        )

    found = find(*row)
    if reference is None:
        assert found["reference"] == "" and found["difference_n"] == 0
        return
    other = find(*reference)
    assert found["reference"] == other["id"]
    assert found["difference_mean"] == found["test_error_mean"] - other["test_error_mean"]
    assert other["reference"] == other["id"] and other["difference_n"] == 0


def test_the_baseline_can_be_a_setting_or_a_row(grid):
    result, printed = report(grid, baseline="optimizer.skipped_update=freeze")
    compared = [row for row in rows_of(result).values() if row["difference_n"]]
    (row,) = compared  # only one is equal to it in everything else
    assert (row["test_error_mean"], row["difference_mean"]) == (2, -48)
    assert "difference: to the row with optimizer.skipped_update=freeze" in printed
    chosen = row["id"]
    result, printed = report(grid, baseline=chosen)
    assert f"difference: to row {chosen}" in printed
    for key, row in rows_of(result).items():
        assert row["reference"] == chosen
        assert key == chosen or row["difference_mean"] == row["test_error_mean"] - 2


@pytest.mark.parametrize(
    "spec, message",
    [
        ("01234567", "no row has this id; there are "),
        ("schedule.p_L=0.3", "no row has this value; there are 0.5, 0.8"),
        ("schedule=mine", "no row has this value; there are constant, linear_decay, uniform"),
        ("trainer.threads=1", "no row has a setting trainer.threads that determines the result"),
    ],
)
def test_a_baseline_that_is_not_there_is_told(grid, spec, message):
    with pytest.raises(ReportError, match=re.escape(message)):
        report(grid, baseline=spec)
    assert not (grid / "report").exists()
