"""`python -m sdnet report`: its numbers against those computed by hand from the run folders."""

import copy
import csv
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from sdnet.__main__ import main
from sdnet.analysis import figure_telemetry
from sdnet.analysis.collect import Run, collect_runs
from sdnet.analysis.figure_style import STYLES
from sdnet.analysis.groups import group_runs
from sdnet.analysis.over_groups import label
from sdnet.analysis.report import ReportError, write_report
from sdnet.analysis.statistics import times_differ
from sdnet.runs.shown import visible
from sdnet.runs.telemetry import add_telemetry
from tests import commands
from tests.commands import Forked

T_975 = {1: 12.706205, 2: 4.302653}  # Student's t by degrees of freedom, from a table
LINEAR = {"_target_": "sdnet.models.schedules.LinearDecay", "name": "linear_decay"}
LINEAR |= {"p_L": 0.5, "p_0": 1.0, "rule": "paper"}
UNIFORM = {"_target_": "sdnet.models.schedules.Uniform", "name": "uniform", "p_L": 0.5}
CONSTANT = {"_target_": "sdnet.models.schedules.Constant", "name": "constant"}
RULE = "lowest validation error, the latest of equals"
COLUMNS = "epoch,step,lr,train_loss,train_error,val_loss,val_error,test_loss,test_error"
COLUMNS += ",train_seconds,eval_seconds,images_per_second,active_blocks"
CONFIG = {
    "model": {
        "_target_": "sdnet.models.resnet.resnet_cifar",
        "name": "resnet20",
        "depth": 20,
        "block": {"_target_": "sdnet.models.blocks.BasicBlock", "_partial_": True},
        "granularity": "batch",
    },
    "dataset": {"_target_": "sdnet.data.sources.digits", "name": "digits", "root": "data"},
    "schedule": LINEAR,
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "skipped_update": "decay"},
    "lr_schedule": {"_target_": "sdnet.training.optim.MultiStep", "milestones": [0.5, 0.75]},
    "trainer": {"epochs": 3, "batch_size": 128, "threads": 1},
    "wandb": {"mode": "disabled"},
    "name": "digits",
    "seed": 0,
}


def survival(schedule, blocks):
    p = schedule.get("p_L", 1.0)
    if "LinearDecay" not in schedule["_target_"]:
        return [p] * blocks
    return [1 - l / blocks * (1 - p) for l in range(1, blocks + 1)]


def write_run(
    folder, seed=0, errors=((9, 8), (4, 5), (6, 7)), summary=None, where=None, **settings
):
    """A run folder as train.py leaves it.

    `errors` are validation and test error by epoch, `settings` those that differ from CONFIG
    (`model__depth=8`), `summary` and `where` are changes of summary.json and provenance.json.
    """
    config = copy.deepcopy(CONFIG) | {"seed": seed}
    for key, value in settings.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [
        f"{epoch},{11 * epoch},0.1,{2 / epoch},50,1,{val},1,{test},{epoch},0.1,900,6.5"
        for epoch, (val, test) in enumerate(errors, start=1)
    ]
    (folder / "metrics.csv").write_text("\n".join([COLUMNS, *lines]) + "\n")
    lowest = min(val for val, _ in errors)
    best = max(i for i, (val, _) in enumerate(errors) if val == lowest)
    blocks = (config["model"]["depth"] - 2) // 2
    active = sum(survival(config["schedule"], blocks))
    result = {
        "status": "completed",
        "best_epoch": best + 1,
        "val_error": lowest,
        "test_error": errors[best][1],
        "final_test_error": errors[-1][1],
        "selection": RULE,
        "train_seconds": 300.0 + seed,
        "seconds_per_epoch": 10.0 + seed,
        "expected_active_blocks": active,
        "mean_active_blocks": active if active == blocks else active + 0.1,
        "blocks": blocks,
        "other_load": 0.1,
    }
    (folder / "summary.json").write_text(json.dumps(result | (summary or {})))
    overrides = [f"schedule={config['schedule']['name']}", f"seed={seed}", "retry_failed=true"]
    provenance = {"overrides": overrides, "git_commit": "0123456789abcdef", "git_dirty": False}
    provenance |= {"device": "cpu", "device_name": "CPU X", "threads": 1}
    (folder / "provenance.json").write_text(json.dumps(provenance | (where or {})))
    return folder


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def by_hand(folder):
    """The reported test error: at the epoch of lowest validation error, the latest of equals."""
    rows, best = metrics(folder), None
    for row in rows:
        if best is None or row["val_error"] <= best["val_error"]:
            best = row
    return best["test_error"]


def mean_std(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """Figures take seconds: they are drawn only for the tests that look at them."""
    if not request.node.name.startswith(("test_figures", "test_the_command")):
        monkeypatch.setattr("sdnet.analysis.figures.draw", lambda *arguments: [])


def report(*folders, **options):
    """The report and what it printed, on a console that is none."""
    console = Console(file=open(os.devnull, "w"), record=True, width=80)  # noqa: SIM115
    result = write_report(folders, console=console, **options)
    return result, console.export_text()


def rows_of(result):
    return {row["id"]: row for row in result.table.to_dict("records")}


def row_with(result, **values):
    (row,) = (
        row
        for row in result.table.to_dict("records")
        if all(row[k.replace("__", ".")] == v for k, v in values.items())
    )
    return row


@pytest.fixture
def sweep(tmp_path):
    """Linear decay and constant depth with three seeds, uniform with two of them and a third."""
    folder = tmp_path / "sweep"
    errors = {
        "linear": [
            ((9, 8), (4, 5), (4, 6.5), (5, 3)),
            ((9, 9), (3, 5.5), (7, 8)),
            ((2, 7), (5, 1)),
        ],
        "constant": [((9, 7), (4, 7.25), (6, 7)), ((3, 6), (4, 9)), ((3, 8), (2, 9.5))],
        "uniform": [((1, 6), (2, 5)), ((5, 7), (1, 4))],
    }
    for seed in range(3):
        write_run(folder / f"linear-{seed}", seed, errors["linear"][seed])
        write_run(folder / f"constant-{seed}", seed, errors["constant"][seed], schedule=CONSTANT)
    for seed, rows in zip((1, 5), errors["uniform"], strict=True):
        write_run(folder / f"uniform-{seed}", seed, rows, schedule=UNIFORM)
    return folder


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


def cells_of(printed):
    """The cells in printed tables by their first one."""
    cells = {}
    for line in printed.splitlines():
        if line.startswith("│"):
            first, *others = (cell.strip() for cell in line.split("│")[1:-1])
            cells.setdefault(first, []).extend(others)
    return cells


def test_a_narrow_terminal_shows_all_cells_in_several_tables(sweep):
    narrow = Console(file=open(os.devnull, "w"), record=True, width=60, force_terminal=True)  # noqa: SIM115
    write_report([sweep], console=narrow)
    printed = narrow.export_text()
    table = [line for line in printed.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 60
    assert len(cells_of(printed)) == 3 and cells_of(printed) == cells_of(report(sweep)[1])


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


@pytest.fixture
def grid(tmp_path):
    """Two depths, linear decay and uniform at two p_L, frozen updates once; no two errors equal."""
    folder = tmp_path / "grid"
    error = 1
    for depth in (20, 56):
        write_run(folder / f"constant-{depth}", 0, ((1, 20 + error),), None, None,
                  schedule=CONSTANT, model__depth=depth)  # fmt: skip
        for schedule in (LINEAR, UNIFORM):
            for p_L in (0.5, 0.8):
                error += 1
                write_run(
                    folder / f"{schedule['name']}-{p_L}-{depth}",
                    errors=((1, error),),
                    schedule=schedule | {"p_L": p_L},
                    model__depth=depth,
                )
    write_run(folder / "freeze", 0, ((1, 50),), optimizer__skipped_update="freeze")
    return folder


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


def test_the_columns_are_the_settings_that_differ(grid):
    columns = ["model.depth", "schedule", "schedule.p_L", "optimizer.skipped_update"]
    assert list(report(grid)[0].table.columns)[1:5] == columns
    adamw = {"_target_": "torch.optim.AdamW", "lr": 0.1, "skipped_update": "decay"}
    write_run(grid / "adamw", optimizer=adamw | {"betas": [0.9, 0.999]})
    write_run(grid / "timm", schedule=LINEAR | {"rule": "timm"}, dataset__root="elsewhere")
    write_run(grid / "power", schedule=LINEAR | {"power": 2})  # others of its class have none
    write_run(grid / "own", schedule=LINEAR | {"_target_": "mine.LinearDecay"})
    cifar = {"_target_": "sdnet.data.sources.cifar10", "name": "cifar10", "root": "data"}
    write_run(grid / "cifar", dataset=cifar)
    result, _ = report(grid)
    columns = ["model.depth", "dataset.name", "schedule", "schedule.p_L", "schedule.rule"]
    columns += ["schedule.power"]
    columns += ["optimizer", "optimizer.skipped_update", "optimizer.betas", "n"]
    assert list(result.table.columns)[1:11] == columns
    assert row_with(result, optimizer="AdamW")["optimizer.betas"] == "[0.9, 0.999]"
    assert row_with(result, optimizer="AdamW")["reference"] == ""
    assert (
        row_with(result, schedule__rule="timm")["schedule"] == "sdnet.models.schedules.LinearDecay"
    )
    assert row_with(result, schedule="mine.LinearDecay")["schedule.rule"] == "paper"


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


def test_masks_per_image_save_nothing(tmp_path):
    write_run(tmp_path / "a", model__granularity="sample")
    assert report(tmp_path)[0].table["expected_saving"].tolist() == [0]


def test_every_row_has_the_command_and_the_commits_that_repeat_it(tmp_path):
    typed = ["+optimizer.dampening=0", "wandb.tags=[a,b]", "name=it's", "seed=0", "resume=x"]
    typed += ["++seed=1", "retry_failed=true", "show=false"]
    resumed = [{"git_commit": "fedcba9876543", "git_dirty": True, "device": "cpu"}]
    resumed[0] |= {"device_name": "CPU X", "threads": 1}
    write_run(tmp_path / "a", 7, where={"overrides": typed, "resumed": resumed})
    write_run(tmp_path / "b", 2, where={"overrides": typed, "git_commit": None})
    (row,) = report(tmp_path)[0].table.to_dict("records")
    assert row["command"] == (
        "python train.py -m +optimizer.dampening=0 'wandb.tags=[a,b]' 'name=it'\"'\"'s' seed=2,7"
    )
    assert row["commit"] == "unknown 0123456 fedcba9+dirty"


def test_the_settings_of_all_rows_are_listed_once_and_what_was_not_recorded_is_unknown(sweep):
    report(sweep)
    lines = (sweep / "report" / "report.md").read_text().splitlines()
    listed = lines[lines.index("## Settings of all rows") + 2].split(", ")
    assert {"model.depth 20", "optimizer.lr 0.1", "trainer.epochs 3"} <= set(listed)
    differ = ("seed ", "schedule ", "schedule.p_L ", "trainer.threads ")
    assert not any(text.startswith(differ) for text in listed)
    assert "selection" not in lines[2]  # one rule for all
    write_run(sweep / "old", where={"overrides": None}, trainer__epochs=4)
    result, _ = report(sweep)
    assert row_with(result, trainer__epochs=4)["command"] == "unknown"
    lines = (sweep / "report" / "report.md").read_text().splitlines()
    listed = lines[lines.index("## Settings of all rows") + 2].split(", ")
    assert "optimizer.lr 0.1" in listed and not any("trainer.epochs" in text for text in listed)


def test_rows_are_in_order_of_their_values():
    from sdnet.analysis.groups import _order

    some = ["b", 2, None, "constant", 0.5, "a"]
    assert sorted(some, key=_order) == ["constant", None, 0.5, 2, "a", "b"]


def test_curves_and_times_are_those_of_the_runs(tmp_path):
    from sdnet.analysis import figure_data
    from sdnet.analysis.collect import collect_runs
    from sdnet.analysis.groups import group_runs

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


def test_figures_are_drawn_where_they_apply_and_stale_ones_removed(grid):
    out = grid.parent / "out"
    result, _ = report(grid, paper=True, out=out)
    names = ["p_L", "heatmap", "curves", "time"]
    assert result.figures == [out / f"{name}.png" for name in names]
    for path in result.figures:
        with Image.open(path) as image:
            image.verify()
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")
    links = re.findall(r"\]\((.*?)\)", (out / "report.md").read_text())
    assert sorted(links) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "pdf"))
    (out / "mine.png").write_bytes(b"kept")
    write_run(grid.parent / "one" / "run", where={"threads": None})  # times unknown
    result, _ = report(grid.parent / "one", out=out)
    assert result.figures == [out / "curves.png"]
    kept = {"report.csv", "report.md", "report.html", "curves.png", "curves.pdf", "mine.png"}
    assert {path.name for path in out.iterdir()} == kept


def test_figures_of_compute_need_that_all_runs_counted_it(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"linear-{seed}", seed)
        write_run(tmp_path / f"constant-{seed}", seed, schedule=CONSTANT)
    assert "Multiply-adds" not in report(tmp_path)[1]
    for seed in (0, 1):
        change(tmp_path / f"linear-{seed}", "summary.json", training_macs=4.0e12)
    result, printed = report(tmp_path)
    assert "compute" not in {path.stem for path in result.figures}
    assert "4.000e12" in printed and "300 ± 1\n" in printed  # seconds
    assert "Multiply-adds" in printed
    for seed in (0, 1):
        change(tmp_path / f"constant-{seed}", "summary.json", training_macs=8.0e15)
    result, _ = report(tmp_path)
    assert result.figures[-1].stem == "compute"
    assert sorted(result.table["train_macs_mean"]) == [4e12, 8e15]


def test_figures_of_gradients_have_points_where_there_is_one_evaluation(tmp_path, monkeypatch):
    for seed in (0, 1):
        run = write_run(tmp_path / f"r{seed}", seed)
        row = {"step": 11, "epoch": 1, "block": 1, "name": "a", "stage": 1, "gradient_mean": 0.1}
        add_telemetry(run / "telemetry.csv", [row])
    kept = []
    monkeypatch.setattr(figure_telemetry, "save", lambda figure, stem: kept.append(figure) or stem)
    assert figure_telemetry.plot_rows(
        group_runs(collect_runs([tmp_path])[0]), "", STYLES["screen"], tmp_path / "gradients"
    )
    for axes in kept[0].axes:
        (line,) = axes.lines
        assert len(line.get_xdata()) == 1 and line.get_marker() == "o"


def test_a_figure_of_an_evaluation_calls_a_row_as_the_report_does(sweep):
    names = {label(group) for group in group_runs(collect_runs([sweep])[0])}
    assert names == {
        "constant depth (n = 3)",
        "linear decay, p_L 0.5 (n = 3)",
        "uniform, p_L 0.5 (n = 2)",
    }


def test_figures_show_the_numbers_of_the_table(grid):
    from sdnet.analysis import figure_data
    from sdnet.analysis.collect import collect_runs
    from sdnet.analysis.groups import group_runs

    (grid / "freeze" / "config.yaml").unlink()
    groups = group_runs(collect_runs([grid])[0])
    lines, levels = figure_data.p_L_lines(groups)
    found = {
        (line.label, line.setting): (line.p_L, [s.mean for s in line.errors]) for line in lines
    }
    assert found[("linear decay", "depth 20")] == ([0.5, 0.8, 1.0], [2, 3, 21])
    assert found[("uniform", "depth 56")] == ([0.5, 0.8, 1.0], [8, 9, 25])
    assert len(found) == 4 and levels == {"depth 20": (21, 21, 21, 1), "depth 56": (25, 25, 25, 1)}
    linear, uniform = figure_data.depth_grids(groups)
    assert (linear.title, linear.p_L, linear.depths) == ("linear decay", [1, 0.8, 0.5], [20, 56])
    assert linear.errors == [[21, 25], [3, 7], [2, 6]]
    assert uniform.errors == [[21, 25], [5, 9], [4, 8]]


def test_the_command(sweep, tmp_path):
    def command(*arguments):
        process = Forked(tmp_path, {}, commands.module, "sdnet", *arguments)
        return *process.communicate(timeout=60), process.returncode

    (sweep / "uniform-1" / "summary.json").write_text('{"status": "failed", "reason": "why"}')
    out, err, status = command("report", "sweep")
    assert status == 0, err
    assert "uniform-1: failed: why" in out and "7 runs in 3 rows" in out
    assert (sweep / "report" / "report.csv").is_file() and (sweep / "report" / "p_L.pdf").is_file()
    assert command("report", "nowhere") == ("", "error: nowhere is not a folder\n", 1)


def test_mistakes_and_nothing_to_report_exit_with_1(tmp_path, capsys):
    assert main([]) == 0 and "report" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 1
    assert f"error: {tmp_path} holds no runs" in capsys.readouterr().err
    write_run(tmp_path / "a", summary={"status": "failed", "reason": "why"})
    assert main(["report", str(tmp_path)]) == 1
    assert "a: failed: why" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()


WRONG = {  # by file and place, the values that no run of ours leaves there
    ("config.yaml", "seed"): ["zz", None, [], 1.5, True],
    ("config.yaml", "model"): [None, [1], "x", {}, {"_target_": 7}],
    ("config.yaml", "schedule"): [None, {"name": "x"}, {"_target_": []}],
    ("config.yaml", "trainer"): [None, {}],
    ("config.yaml", "dataset"): [7],
    ("summary.json", "test_error"): ["x", -1, [], True, float("nan"), 10**400],
    ("summary.json", "seconds_per_epoch"): ["x", 0, float("inf")],
    ("summary.json", "blocks"): ["x", 0, {}],
    ("summary.json", "other_load"): ["x", []],
    ("summary.json", "training_macs"): ["x", 10**400],
    ("summary.json", "epochs"): [0, "x"],
    ("summary.json", "selection"): [None, 7],
    ("summary.json", "status"): [None, [], {}],
    ("provenance.json", "overrides"): [7, [7]],
    ("provenance.json", "resumed"): [7, [7]],
    ("provenance.json", "program"): [7, [7]],
    ("provenance.json", "git_commit"): [7],
}


def change(run, file, **values):
    text = (run / file).read_text()
    content = yaml.safe_load(text) if file.endswith("yaml") else json.loads(text)
    content |= values
    dump = yaml.safe_dump if file.endswith("yaml") else json.dumps
    (run / file).write_text(dump(content))


def test_a_broken_run_is_left_out_and_costs_no_other(tmp_path):
    sound = write_run(tmp_path / "all" / "sound")
    broken = tmp_path / "all" / "broken"
    for (file, key), values in WRONG.items():
        for value in values:
            change(write_run(broken, 1, schedule=UNIFORM), file, **{key: value})
            result, printed = report(tmp_path / "all")
            assert [run.folder for run in result.runs] == [sound], (file, key, value)
            (left,) = result.left_out
            assert left.folder == broken and left.reason.startswith(("unreadable", "unfinished"))
            assert f"{broken}: {left.reason}" in printed and "\n" not in left.reason
            shutil.rmtree(broken)
    for cell in ("x", "", "nan", "inf"):  # of an epoch
        write_run(broken, 1)
        lines = (broken / "metrics.csv").read_text().splitlines()
        changed = [lines[0], *(line.replace(line.split(",")[0], cell, 1) for line in lines[1:])]
        (broken / "metrics.csv").write_text("\n".join(changed) + "\n")
        assert [item.folder for item in report(tmp_path / "all")[0].left_out] == [broken]
        shutil.rmtree(broken)


HOSTILE = [
    *(
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3",
        "@SUM(1)",
        "<script>alert(1)</script>",
        "[red]x[/blue]",
    ),
    *(
        "[x](http://y)",
        "![x](y)",
        "`x` **y** _z_ ~~a~~",
        "# x",
        ":warning:",
        "\x1b[2J\x07",
        "a\r\nb",
    ),
    *("\u202egnp", "a|b", "&lt;", "$\\frac{x$", "a$b$c"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_run_is_called_is_text_wherever_it_is_reported(tmp_path, text):
    hostile = UNIFORM | {"name": text, "rule": text}
    write_run(tmp_path / "sound", schedule=CONSTANT, trainer__x=text)
    (
        write_run(tmp_path / "kept", 1, schedule=CONSTANT, trainer__x=text) / "predictions.npz"
    ).touch()
    write_run(tmp_path / "named", 1, schedule=hostile, summary={"selection": text}, trainer__x=text)
    write_run(
        tmp_path / f"`{text.replace('/', '')}`", 2, summary={"reason": text, "status": "failed"}
    )
    result, printed = report(tmp_path)
    assert len(result.runs) == 3 and len(result.left_out) == 1
    shown = visible(text)
    assert shown in printed and printed.replace("\n", "").isprintable()

    with (tmp_path / "report" / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [cell for row in rows for cell in row.values()]
    assert ("'" if shown[0] in "=+-@" else "") + shown in cells
    assert not any(re.match(r"[=+@\t\r]|-(?![\d.]+$)", cell) for cell in cells)

    page = (tmp_path / "report" / "report.md").read_text()
    assert page.replace("\n", "").isprintable()
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "strong_open"}
    assert sum(token.type == "heading_open" for token in tokens) == 6
    assert shown in {child.content for child in inline} and len(rows[0]) > 20

    html = Html((tmp_path / "report" / "report.html").read_text())
    assert html.tags <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "div"),
        *("table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "pre", "img"),
    }
    assert html.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class"}
    assert shown in {cell for row in html.rows for cell in row}


class Html(HTMLParser):
    """The tags and attributes of a page, and the cells of its table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.sources = set(), set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data.strip("\n")


def test_the_page_has_the_table_and_the_figures_in_one_file(sweep, tmp_path, monkeypatch):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    monkeypatch.setattr("sdnet.analysis.figures.draw", lambda *arguments: [picture])
    _, printed = report(sweep)
    html = Html((sweep / "report" / "report.html").read_text())
    assert {row[0]: row[1:] for row in html.rows[1:]} == cells_of(printed)
    assert html.sources == ["data:image/png;base64,iVBORw=="]  # nothing is fetched


def test_what_all_rows_have_in_common_stands_above_the_table(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"linear-{seed}", seed, schedule=LINEAR | {"p_L": 0.1 + 0.2})
        write_run(tmp_path / f"study-{seed}", seed, schedule=LINEAR | {"p_L": 0.7364519872})
        write_run(tmp_path / f"near-{seed}", seed, schedule=UNIFORM | {"p_L": 0.51})
    result, printed = report(tmp_path)
    above = printed.partition("┏")[0]
    assert {"n: 2", "seeds: 0 1"} <= set(above.splitlines())
    page = (tmp_path / "report" / "report.md").read_text()
    assert "- n: 2\n- seeds: 0 1\n" in page
    head = next(line for line in page.splitlines() if line.startswith("| id"))
    names = [name.strip() for name in head.split("|")[1:-1]]
    results = ["test error (%)", "difference (points)", "validation error (%)"]
    assert names[:6] == ["id", *results, "schedule", "schedule.p_L"] and "n" not in names
    assert {"0.3", "0.7365", "0.51"} == {cells[4] for cells in cells_of(printed).values()}
    assert {0.3, 0.7364519872, 0.51} == set(result.table["schedule.p_L"])
    assert {cells[2] for cells in cells_of(printed).values()} == {"4.00 ± 0.00"}
    write_run(tmp_path / "near", 0, schedule=LINEAR | {"p_L": 0.73645199})
    shown = {cells[4] for cells in cells_of(report(tmp_path)[1]).values()}
    assert {"0.7364519872", "0.73645199"} <= shown  # else two rows would look alike


def test_columns_can_be_chosen_by_name(sweep, capsys):
    result, printed = report(sweep, columns=["seeds", "test error", "difference (points)"])
    cells = {row[0]: row[1:] for row in Html((sweep / "report" / "report.html").read_text()).rows}
    assert cells["id"] == ["seeds", "test error (%)", "difference (points)"]
    row = row_with(result, schedule="uniform")
    assert cells[row["id"]][:2] == ["1 5", "5.00 ± 1.41"]
    assert "n: " not in printed.partition("┏")[0]
    assert "Multiply-adds:" not in printed and "Difference:" in printed  # notes of what is shown
    _, printed = report(sweep, columns=["test error"])  # n differs between these rows
    assert "┃ n ┃" in printed
    assert main(["report", str(sweep), "--columns", "seeds,error"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: --columns: there is no column error; there are id, test error, ")
    assert told.count("\n") == 1
    for options in (["--columns", ""], ["--baseline", ""]):  # a variable that is not set
        assert main(["report", str(sweep), *options]) == 1
        assert capsys.readouterr().err.startswith(f"error: {options[0]}")


def test_no_setting_takes_the_place_of_an_id(tmp_path):
    for name in ("`<script>", "b"):
        write_run(tmp_path / name, id=name, schedule=CONSTANT)
    result, _ = report(tmp_path)
    assert all(re.fullmatch("[0-9a-f]{8}", found) for found in result.table["id"])
    assert "<script>" not in (tmp_path / "report" / "report.md").read_text()


def test_runs_that_say_nothing_of_wandb_are_reported_without_it(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["wandb"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["report", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path / "\x1b[2J")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/\\x1b[2J is not a folder\n"


def test_figures_draw_what_looks_like_a_formula_as_it_is_written(tmp_path):
    for i, text in enumerate(("$\\frac{x$", "a$b$c", "x" * 5000)):
        named = UNIFORM | {"name": text, "p_L": 0.2 + i / 10}
        write_run(tmp_path / "all" / f"u{i}", schedule=named, model__depth=20 + 6 * i)
    write_run(tmp_path / "all" / "deep", schedule=LINEAR, model__depth=20, model__width="$x$")
    drawn = [path.stem for path in report(tmp_path / "all")[0].figures]
    assert drawn == ["p_L", "heatmap", "curves", "time"]  # a grid of one error only has a colour


def test_a_folder_that_cannot_be_written_is_named(sweep, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ReportError, match=r"file/out cannot be written \(Not a directory\): --out "
    ):
        report(sweep, out=tmp_path / "file" / "out")
    for place in (sweep / "report", sweep / "report" / "wandb"):
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(tmp_path)
        with pytest.raises(ReportError, match="report is a link, or wandb in it: --out names"):
            report(sweep)
        place.unlink()
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "sweep"}
