"""`python train.py ...` as a user types it, in a process of its own."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
import yaml

from tests.commands import ROOT

SMALL = ["model.depth=8", "dataset.size=8", "trainer.epochs=2", "trainer.threads=1"]
TIMES = ("train_seconds", "eval_seconds", "images_per_second")


def only_run(folder, pattern="outputs/*/*"):
    (found,) = folder.glob(pattern)
    return found


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def weights(run):
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]


def wandb_records(file):
    """The records of an offline W&B run: a LevelDB-style log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # a block ends in padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or last of several
            records.append(Record.FromString(parts))
            parts = b""
    return records


def items(pairs):
    return {(p.key or ".".join(p.nested_key)): json.loads(p.value_json) for p in pairs}


@pytest.fixture(scope="module")
def finished(train_in, tmp_path_factory):
    """The folder of a small run with W&B offline, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = train_in(folder, *SMALL, "wandb.mode=offline", "wandb.tags=[a,b]", "name=trial")
    assert done.returncode == 0, done.stderr
    return only_run(folder), done.stdout


def read_json(file):
    return json.loads(file.read_text())


def test_a_run_leaves_its_folder_and_says_its_result(finished):
    run, printed = finished
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {f for f in files if not f.startswith("wandb/")} == {
        *("metrics.csv", "summary.json", "config.yaml", "provenance.json", "train.log"),
        *("checkpoints/last.pt", "checkpoints/previous.pt", "checkpoints/best.pt"),
        *("figures/survival.png", "figures/curves.png", "predictions.npz"),
    }
    summary = read_json(run / "summary.json")
    assert summary["status"] == "completed" and summary["steps"] == 22
    best = min(reversed(metrics(run)), key=lambda row: float(row["val_error"]))
    assert summary["test_error"] == float(best["test_error"])
    assert summary["best_epoch"] == float(best["epoch"])
    assert f"{summary['test_error']:.2f} % at epoch" in printed and run.name in printed
    assert "left" not in printed  # no progress bar into a pipe
    provenance = read_json(run / "provenance.json")
    assert provenance["threads"] == 1 and provenance["command"].endswith("name=trial")


def test_the_same_command_gives_the_same_metrics_to_the_byte(finished, train, tmp_path):
    run, _ = finished
    again = train(*SMALL, "wandb.mode=disabled", "name=other")
    assert again.returncode == 0, again.stderr
    second = only_run(tmp_path)
    assert second.parent.name == run.parent.name and metrics(second) == metrics(run)
    assert not (second / "wandb").exists()
    ours, theirs = weights(run), weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_wandb_holds_the_numbers_of_the_run_folder(finished):
    run, _ = finished
    records = wandb_records(next((run / "wandb").glob("offline-run-*/run-*.wandb")))
    started = next(r.run for r in records if r.HasField("run"))
    assert started.run_id == read_json(run / "provenance.json")["wandb_id"]
    assert (started.project, started.run_group, started.job_type) == ("sdnet", "trial", "train")
    assert started.display_name == run.parent.name and list(started.tags) == ["a", "b"]
    config = items(started.config.update)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert {key: config[key] for key in stored} == stored

    history = [items(r.history.item) for r in records if r.HasField("history")]
    logged = [h for h in history if "test_error" in h]
    for row, record in zip(metrics(run), logged, strict=True):
        for key, value in row.items():
            if value == "":  # e.g. a top-5 error of ten classes
                assert key not in record
                continue
            assert record[key] == pytest.approx(float(value), rel=1e-6), key
    assert all(key in logged[0] for key in TIMES)
    summary = read_json(run / "summary.json")
    (interval,) = [h for h in history if "interval/active_blocks" in h]
    assert interval["step"] == 22
    assert interval["interval/active_blocks"] == pytest.approx(summary["mean_active_blocks"])
    assert len(list((run / "wandb").glob("offline-run-*/files/media/images/figures/*.png"))) == 2

    final = {}
    for record in records:
        if record.HasField("summary"):
            final |= items(record.summary.update)
    assert {key: final.get(key) for key in summary} == summary


def test_a_run_ended_by_a_signal_resumes_to_the_same_result(train, tmp_path):
    overrides = [*SMALL, "trainer.epochs=4", "wandb.mode=offline"]
    process = train(*overrides, background=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/*/*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)  # saves, and ends nothing
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    run = only_run(tmp_path)
    summary = read_json(run / "summary.json")
    assert summary["status"] == "interrupted" and 0 < summary["steps"] < 44
    relative = str(run.relative_to(tmp_path))
    assert f"resume={relative}" in out
    before = read_json(run / "provenance.json")["wandb_id"]

    refused = train(f"resume={relative}", "optimizer.lr=0.2")
    assert refused.returncode == 1
    assert "optimizer.lr=0.2 would change the result" in refused.stderr

    done = train(f"resume={relative}", "wandb.mode=offline")
    assert done.returncode == 0, done.stderr
    assert read_json(run / "summary.json")["status"] == "completed"
    files = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and all(before in f.name for f in files)
    whole = train(*overrides, "wandb.mode=disabled")
    assert whole.returncode == 0, whole.stderr
    other = next(f for f in tmp_path.glob("outputs/*/*") if f != run)
    assert metrics(run) == metrics(other)
    ours, theirs = weights(run), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    finished_again = train(f"resume={relative}", "wandb.mode=disabled")
    assert finished_again.returncode == 0 and "is completed: " in finished_again.stdout
    assert len(read_json(run / "provenance.json")["resumed"]) == 1


def test_show_prints_the_plan_and_writes_nothing(train, tmp_path):
    done = train("model.depth=110", "show=true")
    assert done.returncode == 0, done.stderr
    assert "40.25 of 54 blocks" in done.stdout and "1293 training, 144 validation" in done.stdout
    assert "resnet110-linear_decay-pL0.5-s0-" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, also_used",
    [
        (["show=true"], set()),
        ([*SMALL, "trainer.epochs=1", "wandb.mode=disabled"], {"matplotlib", "torch._dynamo"}),
    ],
    ids=["show", "run"],
)
def test_only_what_is_used_is_imported(train, overrides, also_used):
    done = train(*overrides, start=(sys.executable, "-X", "importtime"))
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported
    slow = {"sklearn", "scipy", "pandas", "matplotlib", "wandb", "torchvision", "torchcodec"}
    # torch._dynamo is torch's compiler, which an optimizer imports with its first parameters.
    assert imported & (slow | {"torch._dynamo"}) <= also_used


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("schedule.p_L=0", "schedule.p_L must be a number with 0 < p_L <= 1"),
        ("schedule.pL=0.5", "schedule.pL is not a setting; did you mean p_L?"),
        ("schedule=linear", "schedule must be one of constant, drop_path, linear_decay"),
        ("model.depth=21", "model.depth must be 6n+2"),
        ("model.block._target_=os.system", "model.block._target_=os.system is not allowed"),
        ("dataset=image_folder dataset.root=nowhere", "dataset.root 'nowhere' is not a folder"),
        ("resume=nowhere", "resume=nowhere is not a run folder"),
        (
            "show=true optimizer.nesterov=true optimizer.momentum=0",
            "optimizer: Nesterov momentum requires a momentum",
        ),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(train, tmp_path, overrides, message):
    done = train(*overrides.split())
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_for_who_asks(train):
    done = train("schedule.p_L=0", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1 and "Traceback" in done.stderr and "schedules.py" in done.stderr


def test_a_diverged_run_says_so_in_its_folder(train, tmp_path):
    done = train(*SMALL, "optimizer.lr=1e30", "wandb.mode=disabled")
    assert done.returncode == 1 and "diverged: the training loss is" in done.stderr
    assert "Traceback" not in done.stderr
    summary = read_json(only_run(tmp_path) / "summary.json")
    assert summary["status"] == "diverged" and "loss" in summary["reason"]


def test_an_unreachable_wandb_server_does_not_stop_a_run(train, tmp_path):
    server = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = train(*SMALL, "wandb.mode=online", **server)
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stdout
    assert list(only_run(tmp_path).glob("wandb/offline-run-*"))


@pytest.mark.slow
@pytest.mark.parametrize("program", [[str(ROOT / "train.py")], ["-m", "sdnet", "train"]])
def test_an_interrupt_is_quiet_while_libraries_are_imported(tmp_path, program):
    process = subprocess.Popen(
        [sys.executable, *program, "wandb.mode=disabled"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # as on a terminal, whoever started the tests
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(0.4)  # torch is being imported
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGINT, "")
