"""What stands in a report's table, above it and below it."""

import os
import re

from rich.console import Console

from sdnet.__main__ import main
from sdnet.analysis.report import write_report
from tests.analysis.report_runs import (
    CONSTANT,
    LINEAR,
    UNIFORM,
    Html,
    cells_of,
    report,
    row_with,
    write_run,
)


def test_a_narrow_terminal_shows_all_cells_in_several_tables(sweep):
    narrow = Console(file=open(os.devnull, "w"), record=True, width=60, force_terminal=True)  # noqa: SIM115
    write_report([sweep], console=narrow)
    printed = narrow.export_text()
    table = [line for line in printed.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 60
    assert len(cells_of(printed)) == 3 and cells_of(printed) == cells_of(report(sweep)[1])


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
    assert row_with(result, trainer__epochs=4)["command"].startswith("unknown")
    lines = (sweep / "report" / "report.md").read_text().splitlines()
    listed = lines[lines.index("## Settings of all rows") + 2].split(", ")
    assert "optimizer.lr 0.1" in listed and not any("trainer.epochs" in text for text in listed)


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
    html = (tmp_path / "report" / "report.html").read_text()
    assert "<li>n: 2</li>\n<li>seeds: 0 1</li>" in html.partition("<table>")[0]
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
