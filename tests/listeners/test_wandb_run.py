"""What a run of ours logs to Weights & Biases, with a stand-in for its run."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from PIL import Image

from sdnet.listeners.telemetry import Telemetry
from sdnet.listeners.wandb_run import WandbListener
from sdnet.runs.predictions import Predictions, write_predictions
from sdnet.training.counters import Counters
from sdnet.training.listener import Listener
from tests.listeners.wandb_runs import SETTINGS, Run

pytestmark = pytest.mark.usefixtures("environment")


def config(name=None, log_every=4):
    return {"wandb": SETTINGS | {"name": name}, "trainer": {"log_every": log_every}, "seed": 0}


def listener(begun, run=None, **changes):
    begun.answers = [run or Run()] * 9
    arguments = {"config": config(), "mode": "offline", "folder": Path("run"), "name": "ours"}
    arguments |= {"run_id": "id000000", "resumed": False} | changes
    return WandbListener(**arguments)


def test_a_run_is_named_and_its_numbers_have_their_axes(begun):
    made = listener(begun, resumed=True)
    listener(begun, config=config(name="theirs"))
    assert [arguments["name"] for arguments in begun] == ["ours", "theirs"]
    first = begun[0]
    assert (first["job_type"], first["id"], first["resume"]) == ("train", "id000000", "allow")
    assert first["config"] == config() and first["dir"] == Path("run")
    of_steps = [("interval/active_blocks", "step"), ("telemetry/*", "step")]
    assert made.run.run.metrics[:3] == [("*", "epoch"), *of_steps]


def test_active_blocks_are_the_mean_of_each_interval_and_of_the_rest(begun):
    made = listener(begun)
    counters = Counters(step=2, active=100)
    trainer = SimpleNamespace(counters=counters, total_steps=10, classes=[])
    made.on_start(trainer)  # resumed after 2 steps
    for active in (1, 2, 3, 4, 5, 6, 7, 8):
        trainer.counters.step += 1
        trainer.counters.active += active
        made.on_step(trainer)
    assert made.run.run.logged == [
        {"step": 4, "interval/active_blocks": 1.5},
        {"step": 8, "interval/active_blocks": 4.5},
        {"step": 10, "interval/active_blocks": 7.5},
    ]


def test_a_run_that_is_not_resumed_counts_from_its_first_step(begun):
    made = listener(begun, config=config(log_every=1))
    trainer = SimpleNamespace(counters=Counters(step=1, active=7), total_steps=3)
    made.on_step(trainer)
    assert made.run.run.logged == [{"step": 1, "interval/active_blocks": 7.0}]


def test_a_row_is_logged_without_what_was_not_measured(begun):
    made = listener(begun)
    row = {"epoch": 1.0, "step": 11, "lr": 0.0, "val_error": None, "test_error": 5.0}
    telemetry = Telemetry()
    telemetry.last = [{"name": "layer1.0", "realised": 0.5, "gradient_norm": None}]
    made.on_row(SimpleNamespace(listeners=(Listener(), telemetry)), row)
    known = {"epoch": 1.0, "step": 11, "lr": 0.0, "test_error": 5.0}
    assert made.run.run.logged == [known | {"telemetry/realised/layer1.0": 0.5}]


@pytest.mark.parametrize("trouble", ["log", "finish", "disk"])
def test_trouble_with_wandb_is_told_once_and_never_stops_a_run(begun, monkeypatch, caplog, trouble):
    made, stub = listener(begun), Run()
    made.run.run = stub
    torn = []
    monkeypatch.setattr(wandb, "teardown", lambda: torn.append(None))
    if trouble == "disk":
        full = SimpleNamespace(free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    else:
        monkeypatch.setattr(stub, trouble, lambda *args, **named: 1 / 0)
    for epoch in (1.0, 2.0):
        made.on_row(SimpleNamespace(listeners=()), {"epoch": epoch})
    made.finish({"status": "completed"}, [])
    reason = "OSError: [Errno 28] No space left on device: 'run'"
    if trouble != "disk":
        reason = "ZeroDivisionError: division by zero"
    assert caplog.messages == [f"W&B is lost ({reason}): nothing more is logged to it"]
    assert torn == [None]


def test_a_figure_that_is_missing_does_not_keep_a_run_from_its_end(begun, monkeypatch):
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    made, stub = listener(begun), Run()
    made.run.run = stub
    made.finish({"status": "completed"}, [Path("missing.png")])
    assert stub.summary == {"status": "completed"} and stub.ended == [0]


@pytest.mark.parametrize(
    "summary, code",
    [({"status": "completed", "test_error": 5.0}, 0), ({"status": "failed"}, 1), ({}, 1)],
)
def test_the_end_of_a_run_has_its_summary_figures_and_exit_code(begun, tmp_path, summary, code):
    for name in ("curves", "survival"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    made = listener(begun)
    made.finish(summary, [tmp_path / "survival.png", tmp_path / "curves.png"])
    (figures,) = made.run.run.logged
    assert list(figures) == ["figures/survival", "figures/curves"]
    assert all(isinstance(image, wandb.Image) for image in figures.values())
    assert made.run.run.summary == summary and made.run.run.ended == [code]


def test_the_end_of_a_completed_run_has_a_table_of_what_it_confuses_and_no_logits(begun, tmp_path):
    made = listener(begun, folder=tmp_path)
    made.on_start(SimpleNamespace(counters=Counters(), classes=["cat", "dog"]))
    logits = np.float32([[2, 0], [2, 0], [0, 2], [0, 2]])
    parts = {"test": Predictions.from_logits(logits, [0, 1, 1, 1], "a")}
    write_predictions(tmp_path / "predictions.npz", parts, 1.0, 1)
    made.finish({"status": "completed"}, [])
    (table,) = [values["confusion"] for values in made.run.run.logged if values]
    assert table.columns == ["actual", "predicted", "count"]
    assert table.data == [["cat", "cat", 1], ["dog", "cat", 1], ["dog", "dog", 2]]

    failed = listener(begun, Run(), folder=tmp_path)
    failed.finish({"status": "failed"}, [])
    assert not any(failed.run.run.logged)
