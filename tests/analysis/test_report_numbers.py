"""`python -m sdnet report`: its numbers against those computed by hand from the run folders."""

import csv
import math

import pytest

from sdnet.analysis.collect import collect_runs
from sdnet.analysis.groups import group_runs
from tests.analysis.report_runs import (
    COLUMNS,
    CONSTANT,
    RULE,
    T_975,
    by_hand,
    mean_std,
    metrics,
    report,
    row_with,
    rows_of,
    write_run,
)


def test_the_numbers_are_those_computed_by_hand(sweep):
    result, _ = report(sweep)
    assert len(result.runs) == 8 and len(result.table) == 3 and not result.left_out
    ours = [by_hand(sweep / f"linear-{seed}") for seed in range(3)]
    theirs = [by_hand(sweep / f"constant-{seed}") for seed in range(3)]
    assert ours == [6.5, 5.5, 7]  # of equals the latest; never the lowest test error
    row = row_with(result, schedule="linear_decay")
    assert (row["n"], row["seeds"], row["schedule.p_L"]) == (3, "0 1 2", 0.5)
    assert [row["test_error_mean"], row["test_error_std"]] == pytest.approx(mean_std(ours))
    final = [metrics(sweep / f"linear-{seed}")[-1]["test_error"] for seed in range(3)]
    assert [row["final_error_mean"], row["final_error_std"]] == pytest.approx(mean_std(final))
    mean, std = mean_std([a - b for a, b in zip(ours, theirs, strict=True)])
    half = T_975[2] * std / math.sqrt(3)
    found = [row[f"difference_{part}"] for part in ("mean", "low", "high", "n")]
    assert found == pytest.approx([mean, mean - half, mean + half, 3])
    assert row["expected_active_blocks"] == pytest.approx(6.5)  # (3L - 1) / 4 for L = 9
    assert row["expected_saving"] == pytest.approx(2.5 / 9)
    assert row["mean_active_blocks"] == pytest.approx(row["expected_active_blocks"] + 0.1)
    assert row["seconds_per_epoch"] == 11 and row["time_saving"] == 0


def test_pairs_are_runs_of_the_same_seed(sweep):
    result, printed = report(sweep)
    row = row_with(result, schedule="uniform")  # seeds 1 and 5; the baseline has 0, 1 and 2
    assert (row["n"], row["seeds"], row["difference_n"]) == (2, "1 5", 1)
    assert row["difference_mean"] == by_hand(sweep / "uniform-1") - by_hand(sweep / "constant-1")
    assert math.isnan(row["difference_low"]) and math.isnan(row["difference_high"])
    assert "+0.00 (n = 1)" in printed
    write_run(sweep / "constant-5", 5, ((1, 3.5), (2, 9)), schedule=CONSTANT)
    row = row_with(report(sweep)[0], schedule="uniform")
    differences = [6.0 - 6.0, 4.0 - 3.5]
    mean, std = mean_std(differences)
    half = T_975[1] * std / math.sqrt(2)
    found = [row[f"difference_{part}"] for part in ("mean", "low", "high", "n")]
    assert found == pytest.approx([mean, mean - half, mean + half, 2])


def test_one_seed_has_no_deviation_and_without_a_baseline_there_is_no_difference(tmp_path):
    write_run(tmp_path / "one", 4)
    result, printed = report(tmp_path)
    (row,) = result.table.to_dict("records")
    assert row["test_error_mean"] == 5 and math.isnan(row["test_error_std"])
    assert math.isnan(row["difference_mean"]) and row["reference"] == ""
    assert "5.00 " in printed and "±" not in printed.split("n runs")[0]
    assert "constant depth with the same other settings (there is none)" in printed
    assert row["command"] == "python train.py schedule=linear_decay seed=4"


def test_csv_markdown_and_terminal_agree(sweep):
    result, printed = report(sweep)
    with (sweep / "report" / "report.csv").open() as file:
        stored = {row["id"]: row for row in csv.DictReader(file)}
    markdown = (sweep / "report" / "report.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    shown = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("│")
    ]
    assert shown == body and len(body) == 3
    for cells in body:
        row = dict(zip(head, cells, strict=True))
        raw, exact = stored[row["id"]], rows_of(result)[row["id"]]
        assert float(raw["test_error_mean"]) == exact["test_error_mean"]
        error = f"{float(raw['test_error_mean']):.2f} ± {float(raw['test_error_std']):.2f}"
        assert row["test error (%)"] == error
        assert float(row["schedule.p_L"]) == float(raw["schedule.p_L"]) and row["n"] == raw["n"]
        if raw["difference_low"]:
            limits = f"[{float(raw['difference_low']):+.2f}, {float(raw['difference_high']):+.2f}]"
            assert row["difference (points)"] == f"{float(raw['difference_mean']):+.2f} {limits}"
        assert f"    {raw['command']}\n" in markdown and raw["command"] in printed


def test_what_is_left_out_says_why(sweep):
    def broken(name, file, text):
        folder = write_run(sweep / name, 9)
        (folder / file).write_text(text) if text is not None else (folder / file).unlink()

    write_run(sweep / "a-running", 9, ((9, 9), (8, 8)), {"status": "running"})
    write_run(sweep / "a-stopped", 9, ((9, 9),), {"status": "interrupted"})
    (sweep / "a-stopped" / "metrics.csv").unlink()
    write_run(sweep / "a-budget", 9, ((9, 9),), {"status": "running"}, trainer__budget=40)
    write_run(sweep / "diverged", 9, summary={"status": "diverged", "reason": "loss is nan"})
    write_run(sweep / "failed", 9, summary={"status": "failed", "reason": "OSError: disk [full]"})
    broken("half-config", "config.yaml", "model: [1,")
    broken("half-summary", "summary.json", '{"status": "comp')
    broken("half-metrics", "metrics.csv", COLUMNS + "\n1,2,x\n")
    write_run(sweep / "no-result", 9, summary={"test_error": None})
    write_run(sweep / "other-rule", 9, ((4, 5), (4, 6)), {"test_error": 5})  # first of equals
    result, printed = report(sweep)
    assert len(result.runs) == 8
    reasons = {item.folder.name: item.reason for item in result.left_out}
    markdown = (sweep / "report" / "report.md").read_text()
    for name, reason in {
        "a-running": "unfinished: running, epoch 2 of 3",
        "a-stopped": "unfinished: interrupted, epoch 0 of 3",
        "a-budget": "unfinished: running, epoch 1",  # not of 3: the budget says how many
        "diverged": "diverged: loss is nan",
        "failed": "failed: OSError: disk [full]",
        "half-config": "unreadable: config.yaml: ",
        "half-summary": "unreadable: summary.json: ",
        "half-metrics": "unreadable: metrics.csv: ",
        "no-result": "unreadable: summary.json has no test_error",
        "other-rule": "unreadable: summary.json and metrics.csv do not agree on test_error",
    }.items():
        found = reasons.pop(name)
        assert found.startswith(reason) and " of 3" not in found.removeprefix(reason), name
        assert reason in printed and reason in markdown
    assert not reasons


def test_a_run_counts_once(sweep, tmp_path):
    copied = write_run(tmp_path / "more" / "copy", 1, ((1, 1),), trainer__threads=7)
    write_run(tmp_path / "more" / "new", 3)
    write_run(tmp_path / "more" / "new" / "kept" / "inside", 77)  # part of that run's folder
    result, _ = report(sweep, sweep / "linear-0", tmp_path / "more", sweep, out=tmp_path / "out")
    assert len(result.runs) == 9
    assert row_with(result, schedule="linear_decay")["seeds"] == "0 1 2 3"
    (left,) = result.left_out
    assert left.folder == copied and left.reason == f"the same run as {sweep / 'linear-1'}"
    first = report(tmp_path / "more", sweep, out=tmp_path / "out")[0]
    assert [item.folder for item in first.left_out] == [sweep / "linear-1"]


def test_runs_of_several_processes_with_many_classes(tmp_path):
    for seed in (0, 1):
        top5 = {"test_top5_error": 3.0 + seed}
        write_run(tmp_path / str(seed), seed, summary=top5, where={"processes": 2})
    result, printed = report(tmp_path)
    assert "top-5 (%)" in printed and "3.50 ± 0.71" in printed
    command = result.table["command"][0]
    assert command.startswith("python train.py -m ") and command.endswith(
        "seed=0,1 hydra/launcher=submitit_local hydra.launcher.tasks_per_node=2"
    )
    result, _ = report(tmp_path / "0")
    assert result.table["command"][0].startswith("torchrun --nproc-per-node=2 train.py schedule=")


def test_masks_per_image_save_nothing(tmp_path):
    write_run(tmp_path / "a", model__granularity="sample")
    assert report(tmp_path)[0].table["expected_saving"].tolist() == [0]


def test_rows_are_in_order_of_their_values():
    from sdnet.analysis.groups import _order

    some = ["b", 2, None, "constant", 0.5, "a"]
    assert sorted(some, key=_order) == ["constant", None, 0.5, 2, "a", "b"]


def test_curves_and_times_are_those_of_the_runs(tmp_path):
    from sdnet.analysis import figure_data

    write_run(tmp_path / "a", 0, ((9, 8), (4, 5)))
    write_run(tmp_path / "b", 1, ((9, 6), (4, 3), (6, 7)))
    write_run(tmp_path / "c", 0, schedule=CONSTANT, model__depth=56)
    groups = group_runs(collect_runs([tmp_path])[0])
    linear, baseline = figure_data.curves(groups)
    assert (baseline.label, baseline.is_constant) == ("constant depth, depth 56", True)
    assert linear.label == "linear decay, $p_L$ 0.5, depth 20" and linear.p_L == 0.5
    assert (linear.series, linear.is_constant) == ("linear decay, depth 20", False)
    assert linear.epochs == [1, 2]  # that both runs evaluated
    assert linear.test_error.tolist() == [[8, 6], [5, 3]]
    assert linear.train_loss.tolist() == [[2, 2], [1, 1]] and linear.train_loss.dtype == float
    point, constant = figure_data.points_by("train_seconds", groups)
    assert (constant.p_L, constant.is_constant, constant.series) == (
        *(1.0, True),
        "constant depth, depth 56",
    )
    assert (constant.cost, constant.error) == ((300, 300, 300, 1), (5, 5, 5, 1))
    assert constant.joins == []  # another depth
    assert (point.p_L, point.is_constant, point.series) == (0.5, False, "linear decay, depth 20")
    assert point.cost == (300.5, 300, 301, 2) and point.error == (4, 3, 5, 2)
    assert figure_data.title_of(groups) == "resnet20 on digits, 3 epochs"
    groups[-1].runs[0].config["model"]["name"] = "resnet56"
    assert figure_data.title_of(groups) == "digits, 3 epochs"
    groups[-1].runs[0].config["trainer"]["epochs"] = 7
    groups[-1].runs[0].config["dataset"]["name"] = "dots"
    assert figure_data.title_of(groups) == ""


def test_different_rules_of_selection_are_told(sweep):
    rule = "last epoch (no validation images)"
    assert "WARNING" not in report(sweep)[1]
    run = write_run(sweep / "last", 3, ((5, 6), (1, 9)), {"selection": rule})
    lines = (run / "metrics.csv").read_text().replace(",1,1,1,9,", ",,,1,9,")
    (run / "metrics.csv").write_text(lines)
    result, printed = report(sweep)
    assert len(result.runs) == 9
    markdown = (sweep / "report" / "report.md").read_text()
    for text in (printed, markdown):
        assert "WARNING" in text and f"{rule} | {RULE}" in text and f"{rule}; {RULE}" in text
