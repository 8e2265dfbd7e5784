"""`python -m sdnet evaluate`: from the command line, on tiny runs."""

import csv
import json
import os
import re
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from sdnet.__main__ import main
from sdnet.analysis import figure_evaluation
from sdnet.analysis.probes import figures as probe_figures
from sdnet.config.errors import ConfigError
from sdnet.data.split import Split
from sdnet.launch import build, opened
from sdnet.launch.modes import MODES
from sdnet.launch.opened import Opened
from sdnet.runs.folder import RunFolder
from sdnet.runs.predictions import Predictions, read_predictions, write_predictions

FULL = {"full_depth.csv", "per_class.csv", "confusion.csv", "reliability.csv", "evaluation.json"}
FULL |= {"reliability.png", "confusion.png"}


@pytest.fixture
def run(small):
    """The folder of a completed run, whose data are found."""
    return finish(small("dataset.size=8", "trainer.epochs=1"))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are empty files: to draw them takes most of the time."""

    def save(figure, stem):
        plt.close(figure)
        stem.with_suffix(".png").touch()

    for module in (figure_evaluation, probe_figures):
        monkeypatch.setattr(module, "save", save)


def finish(trainer):
    trainer.fit()
    trainer.run.set_status("completed", None, trainer.result())
    return trainer.run.path


def table(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def refused(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def evaluated(*arguments):
    assert main(["evaluate", *map(str, arguments)]) == 0


def test_full_depth_is_what_the_run_measured_and_the_network_is_not_asked(run, monkeypatch, capsys):
    monkeypatch.setattr(opened, "load_run", lambda *given: pytest.fail("the network was asked"))
    evaluated(run)
    out, summary = run / "evaluation", RunFolder(run).summary()
    assert {file.name for file in out.iterdir()} == FULL | {"reliability.pdf", "confusion.pdf"}
    validation, test = table(out / "full_depth.csv")
    assert (validation["part"], validation["images"]) == ("validation", "6")
    assert float(validation["error"]) == pytest.approx(summary["val_error"])
    assert (test["part"], test["images"]) == ("test", "9")
    assert float(test["error"]) == pytest.approx(summary["test_error"])
    (row,) = RunFolder(run).rows()
    assert float(test["loss"]) == pytest.approx(row["test_loss"], rel=1e-3)  # logits have 11 bits
    assert test["top5_error"] == ""
    facts = json.loads((out / "evaluation.json").read_text())
    assert facts["identity"] == summary["identity"] and facts["checkpoint"] == "best"
    assert facts["full_depth"][1]["error"] == float(test["error"])
    for name, column in (
        ("confusion", "count"),
        ("per_class", "images"),
        ("reliability", "images"),
    ):
        images = {"validation": 0, "test": 0}
        for row in facts[name]:
            images[row["part"]] += row[column]
        assert images == {"validation": 6, "test": 9}
    assert all(Image.open(out / f"{n}.png").width > 500 for n in ("confusion", "reliability"))
    said = capsys.readouterr().out
    assert f"{float(test['error']):.2f}" in said and "full_depth.csv" in said


def test_a_run_without_predictions_is_evaluated_from_its_checkpoint_to_the_same_byte(run, undrawn):
    file = RunFolder(run).predictions
    before = file.read_bytes()
    evaluated(run)
    first = {f.name: f.read_bytes() for f in (run / "evaluation").iterdir()}
    file.unlink()
    evaluated(run)
    assert file.read_bytes() == before
    assert {f.name: f.read_bytes() for f in (run / "evaluation").iterdir()} == first


def test_the_last_checkpoint_is_asked_and_leaves_the_stored_predictions(small, tmp_path, undrawn):
    run = finish(small())
    before = RunFolder(run).predictions.read_bytes()
    evaluated(run, "--checkpoint", "last", "--out", tmp_path / "out", "--batch-size", "4")
    (test,) = (r for r in table(tmp_path / "out" / "full_depth.csv") if r["part"] == "test")
    assert float(test["error"]) == pytest.approx(RunFolder(run).summary()["final_test_error"])
    assert RunFolder(run).predictions.read_bytes() == before
    assert not (run / "evaluation").exists()


def other(data):
    """The same with other test images."""
    return replace(data, test=Split(255 - data.test[:], data.test.labels))


def test_another_test_set_is_refused_by_name(run, data, monkeypatch, capsys):
    stored = read_predictions(RunFolder(run).predictions)["test"].order[:8]
    exchanged = other(data)
    monkeypatch.setattr(build, "build_data", lambda config, listing=False: exchanged)
    err = refused(capsys, run)
    assert err.startswith(f"error: {run}: its predictions are of another test set ({stored})")
    assert f"({exchanged.test.order()[:8]})" in err and "put the run's own back" in err
    assert not (run / "evaluation").exists()


def test_a_network_without_predictions_is_not_asked_of_other_images(run, data, monkeypatch, capsys):
    labels = read_predictions(RunFolder(run).predictions)["test"].predicted
    RunFolder(run).predictions.unlink()
    exchanged = replace(data, test=Split(data.test[:], labels))
    monkeypatch.setattr(build, "build_data", lambda config, listing=False: exchanged)
    assert "its network errs on 0.00 % of the test set that is there now" in refused(capsys, run)
    assert not RunFolder(run).predictions.exists()


def gone(config, listing=False):
    raise ConfigError("no data here")


def test_where_the_data_are_gone_the_stored_predictions_are_used(
    run, undrawn, monkeypatch, caplog, capsys
):
    evaluated(run)
    before = (run / "evaluation" / "full_depth.csv").read_bytes()
    monkeypatch.setattr(build, "build_data", gone)
    evaluated(run)
    assert (run / "evaluation" / "full_depth.csv").read_bytes() == before
    assert "its data cannot be read: no data here: the stored predictions are used" in caplog.text
    assert f"{run}: its data cannot be read: no data here" in refused(capsys, run, "--lesion")
    RunFolder(run).predictions.unlink()
    assert f"{run}: its data cannot be read: no data here" in refused(capsys, run)


def test_nothing_that_a_foreign_configuration_names_is_called(run, tmp_path, capsys):
    (tmp_path / "a").write_text("")
    config = (run / "config.yaml").read_text()
    target = f"_target_: shutil.copyfile\n  src: {tmp_path / 'a'}\n  dst: {tmp_path / 'b'}"
    changed = re.sub(r"(?<=dataset:\n  )_target_: .*", target, config)
    assert changed != config
    (run / "config.yaml").write_text(changed)
    assert "dataset._target_=shutil.copyfile is not allowed" in refused(capsys, run)
    assert not (tmp_path / "b").exists()


def test_predictions_that_are_not_of_the_run_are_refused(run, capsys):
    path = RunFolder(run).predictions
    test = read_predictions(path)["test"]
    all_right = Predictions.from_logits(np.eye(test.classes)[test.labels], test.labels, test.order)
    write_predictions(path, {"test": all_right}, 1.0, 1)
    assert f"{run}: its predictions err on 0.00 %" in refused(capsys, run)


def test_what_cannot_be_evaluated_is_named(run, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no runs" in refused(capsys, empty)
    RunFolder(run).predictions.write_bytes(b"nothing")
    assert "predictions.npz cannot be read" in refused(capsys, run)
    assert f"{run}: predictions.npz" in refused(capsys, run)
    RunFolder(run).predictions.unlink()
    os.remove(run / "checkpoints" / "best.pt")
    assert "has no checkpoint best.pt yet" in refused(capsys, run)
    (run / "checkpoints" / "best.pt").write_bytes(b"nothing that could be one" * 9)
    assert "checkpoint best.pt is damaged" in refused(capsys, run)
    (run / "evaluation").symlink_to(empty)
    assert "evaluation is a link that leads out of it" in refused(capsys, run)
    assert not list(empty.iterdir())
    RunFolder(run).set_status("running")
    assert f"{run}: unfinished: running, epoch 1 of 1" in refused(capsys, run)
    for wrong in ("0", "-1", "many"):
        with pytest.raises(SystemExit):
            main(["evaluate", str(run), "--monte-carlo", wrong])
        assert f"must be a whole number of at least 1, got {wrong!r}" in capsys.readouterr().err


ALL = ["--lesion", "--truncate", "--pareto", "4", "--recalibrate-bn", "--corruptions"]
ALL += ["--lesion-pairs", "2", "--monte-carlo", "2"]
TABLES = {"lesion", "lesion_sets", "truncation", "pareto", "monte_carlo", "corruptions"}


def test_each_mode_leaves_its_table_and_its_figure(run, undrawn, caplog, capsys):
    assert len(ALL) - 3 == len(MODES)
    evaluated(run, *ALL, "--seed", "1", "--images", "5")
    assert "lesion: 5 test images, best checkpoint" in capsys.readouterr().out
    out = run / "evaluation"
    names = {f"{name}.{kind}" for name in TABLES for kind in ("csv", "png")}
    assert {file.name for file in out.iterdir()} == FULL | names | {"recalibration.csv"}
    facts = json.loads((out / "evaluation.json").read_text())
    for name in (*TABLES, "recalibration"):
        assert len(facts[name]) == len(table(out / f"{name}.csv")) > 1
    assert len(facts["lesion"]) == 3 and facts["monte_carlo"][1]["members"] == 2
    assert {row["test_error"] for row in facts["lesion"]} <= {0, 20, 40, 60, 80, 100}  # of 5
    assert facts["pareto"][0]["validation_error"] in (0, 25, 50, 75, 100)  # of 4 images
    assert "has no two blocks of the same shape" in caplog.text  # to swap, which costs no table


def test_a_sweep_is_a_table_over_its_groups(small, tmp_path, undrawn, capsys):
    """Two seeds of stochastic depth, one of constant depth, and a run that is under way."""
    sweep, out = tmp_path / "sweep", tmp_path / "sweep" / "evaluation"
    for name, *given in (("u0", "seed=0"), ("u1", "seed=1"), ("c0", "schedule=constant")):
        finish(small(*given, "trainer.epochs=1", folder=f"sweep/{name}"))
    small(folder="sweep/unfinished")
    evaluated(sweep, "--lesion", "--monte-carlo", "2")
    said = capsys.readouterr().out
    assert "3 runs in 2 groups" in said
    assert f"{sweep / 'unfinished'}: unfinished: running" in said
    tables = ("evaluation", "per_class", "lesion", "monte_carlo", "ensemble")
    names = {f"{name}.csv" for name in tables}
    names |= {"evaluation.md", "lesion.png", "monte_carlo.png"}
    assert {file.name for file in out.iterdir()} == names

    def of_runs(name, row, column):
        return [float(table(sweep / r / "evaluation" / name)[row][column]) for r in ("u0", "u1")]

    constant, uniform = (row for row in table(out / "evaluation.csv") if row["part"] == "test")
    errors = of_runs("full_depth.csv", 1, "error")
    assert (uniform["schedule"], uniform["n"], uniform["seeds"]) == ("uniform", "2", "0 1")
    assert float(uniform["error_mean"]) == pytest.approx(np.mean(errors))
    assert float(uniform["error_std"]) == pytest.approx(np.std(errors, ddof=1))
    assert (constant["schedule"], constant["n"], constant["error_std"]) == ("constant", "1", "")
    assert f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}" in said
    assert f"{np.mean(errors):.2f} ±" in (out / "evaluation.md").read_text()
    row = table(out / "lesion.csv")[4]
    assert (row["schedule"], row["gate"], row["survival_mean"]) == ("uniform", "2", "0.5")
    losses = of_runs("lesion.csv", 1, "test_loss_increase")
    assert float(row["test_loss_increase_mean"]) == pytest.approx(np.mean(losses))
    (ensemble,) = table(out / "ensemble.csv")  # one seed is none
    assert (ensemble["schedule"], ensemble["members"]) == ("uniform", "2")


def test_runs_from_several_folders_are_one_table_and_go_where_they_are_told(
    small, tmp_path, undrawn, capsys
):
    runs = [finish(small(f"seed={seed}", "trainer.epochs=1", folder=f"r{seed}")) for seed in (0, 1)]
    shutil.copytree(runs[0], tmp_path / "copy")
    evaluated(*runs, tmp_path / "copy", "--out", tmp_path / "out")
    assert "2 runs in 1 group" in capsys.readouterr().out
    names = {Opened(RunFolder(run)).name for run in runs}
    files = {"evaluation.csv", "evaluation.md", "per_class.csv"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | files
    assert not any((run / "evaluation").exists() for run in runs)
