"""`python train.py -m ...` as a user types it: planned before it starts, and never done twice."""

import csv
import json
import shutil
import signal
import time

import pytest
import torch
import yaml
from PIL import Image

from tests.commands import Forked
from tests.training import steps

SMALL = ["model.depth=8", "dataset.size=8", "trainer.epochs=2", "trainer.threads=1"]
SWEEP = ["-m", *SMALL, "name=s", "wandb.mode=disabled", "schedule.p_L=0.5,1", "seed=0,1"]
TIMES = ("train_seconds", "eval_seconds", "images_per_second")


def run_folders(folder):
    return {path.parent.name: path.parent for path in folder.glob("multirun/*/*/config.yaml")}


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def summary(run):
    return json.loads((run / "summary.json").read_text())


def weights(run):
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def swept(train_in, tmp_path_factory):
    """The folder of a sweep of four runs, and what the command printed."""
    folder = tmp_path_factory.mktemp("swept")
    done = train_in(folder, *SWEEP)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_sweep_names_its_runs_by_their_settings_and_ends_with_a_report(swept):
    folder, printed = swept
    runs = run_folders(folder)
    assert sorted(name.rpartition("-")[0] for name in runs) == [
        *("resnet8-constant-pL1-s0", "resnet8-constant-pL1-s1"),
        *("resnet8-linear_decay-pL0.5-s0", "resnet8-linear_decay-pL0.5-s1"),
    ]
    assert all(
        run.parent.name == "s" and summary(run)["status"] == "completed" for run in runs.values()
    )
    assert "sweep multirun/s: 4 runs: 4 to run" in printed
    with (folder / "multirun" / "s" / "report" / "report.csv").open() as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["2", "2"]
    provenance = json.loads((runs[min(runs)] / "provenance.json").read_text())
    assert provenance["overrides"] == [*SWEEP[1:-2], "schedule.p_L=1", "seed=0"]


@pytest.mark.slow
def test_the_same_command_runs_nothing_and_an_overlapping_one_only_what_is_new(swept, train_in):
    folder, _ = swept
    before = {
        name: (run / "metrics.csv").stat().st_mtime_ns for name, run in run_folders(folder).items()
    }
    again = train_in(folder, *SWEEP)
    assert again.returncode == 0, again.stderr
    assert "4 runs: 4 done" in again.stdout and "Launching" not in again.stdout
    assert all(f"done: {name}, " in again.stdout for name in before)

    overlap = ["schedule=linear_decay,uniform", "schedule.p_L=0.5,1.0", "seed=0"]
    listed = train_in(folder, *SWEEP[:-2], *overlap, "show=true")
    assert listed.returncode == 0, listed.stderr
    assert "3 runs: 2 done, 1 to run" in listed.stdout  # p_L = 1 is one run, whatever the schedule
    states = {
        line.split()[0].rpartition("-")[0]: line
        for line in listed.stdout.splitlines()
        if "resnet8" in line
    }
    assert (
        " to run " in states["resnet8-uniform-pL0.5-s0"]
        and "1.50 of 3" in states["resnet8-uniform-pL0.5-s0"]
    )
    assert (
        " done " in states["resnet8-constant-pL1-s0"]
        and "100.0%" in states["resnet8-constant-pL1-s0"]
    )
    assert set(run_folders(folder)) == set(before)

    more = train_in(folder, *SWEEP[:-2], *overlap)
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("computed on ") == 1 and "Launching" not in more.stdout
    runs = run_folders(folder)
    assert len(runs) == 5
    assert {name: (runs[name] / "metrics.csv").stat().st_mtime_ns for name in before} == before


def test_a_sweep_ends_where_cuda_is_gone_and_what_is_left_of_it_stays_new(tmp_path):
    process = Forked(tmp_path, {}, steps.lose_cuda, *SWEEP[:-2], "schedule.p_L=0.5", "seed=0,1,2")
    out, err = process.communicate(timeout=100)
    runs = run_folders(tmp_path)
    reasons = [summary(run)["reason"] for _, run in sorted(runs.items())]
    assert len(reasons) == 2 and reasons[0] == "OutOfMemoryError: CUDA out of memory", err
    assert reasons[1].startswith("AcceleratorError: CUDA error: an illegal memory access")
    assert {summary(run)["status"] for run in runs.values()} == {"failed"}
    assert not list(tmp_path.glob("multirun/*/*/lock")) and process.returncode == 1
    assert out.count("the same command goes on with those left") == 1
    assert "\nnot run: multirun/s/resnet8-linear_decay-pL0.5-s2-" in out


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_result(swept, train, tmp_path):
    process = train(*SWEEP, background=True)
    wait_for(lambda: len(list(tmp_path.glob("multirun/s/*/metrics.csv"))) == 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(run_folders(tmp_path)) == 3
    states = [summary(run)["status"] for run in run_folders(tmp_path).values()]
    assert sorted(states) == ["completed", "completed", "running"]

    again = train(*SWEEP)
    assert again.returncode == 0, again.stderr
    assert "4 runs: 2 done, 1 to resume, 1 to run" in again.stdout
    ours, theirs = run_folders(tmp_path), run_folders(swept[0])
    for name, run in ours.items():
        assert metrics(run) == metrics(theirs[name])
        assert all(torch.equal(w, weights(theirs[name])[key]) for key, w in weights(run).items())


def test_a_folder_that_holds_another_run_is_refused(swept, train, tmp_path):
    shutil.copytree(swept[0] / "multirun", tmp_path / "multirun")
    run = run_folders(tmp_path)[min(run_folders(tmp_path))]
    stored = yaml.safe_load((run / "config.yaml").read_text())
    stored["optimizer"]["lr"] = 0.2
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    refused = train(*SWEEP)
    assert refused.returncode == 1 and "holds another run" in refused.stderr
    assert str(run.relative_to(tmp_path)) in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_failing_run_stops_nothing(train, tmp_path):
    images = tmp_path / "images"
    for part, label in ((p, c) for p in ("train", "test") for c in ("a", "b")):
        (images / part / label).mkdir(parents=True)
        for i in range(40):
            Image.new("RGB", (8, 8), (i, 90, 9)).save(images / part / label / f"{i}.png")
    sweep = ["-m", *SMALL[:1], "trainer.threads=1", "trainer.epochs=15", "name=f"]
    sweep += ["wandb.mode=disabled", "dataset=image_folder", "dataset.root=images", "seed=0,1"]
    process = train(*sweep, background=True)
    wait_for(lambda: list(tmp_path.glob("multirun/f/*/metrics.csv")), process)
    images.rename(tmp_path / "away")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    good, bad = sorted(run_folders(tmp_path).values())
    assert summary(good)["status"] == "completed"
    assert summary(bad)["status"] == "failed" and "images" in summary(bad)["reason"]
    assert "Traceback" in (bad / "train.log").read_text()
    assert f"failed: multirun/f/{bad.name}: " in out and "Traceback" not in out + err

    (tmp_path / "away").rename(images)
    (bad / "checkpoints").mkdir()
    (bad / "checkpoints" / "last.pt").write_text("damaged")
    left = train(*sweep)
    assert left.returncode == 1 and "retry_failed=true" in left.stdout
    assert summary(bad)["status"] == "failed"
    retried = train(*sweep, "retry_failed=true")
    assert retried.returncode == 0, retried.stderr
    assert "last.pt is damaged (it has 7 bytes)" in retried.stdout
    assert "is now last.pt.damaged; the run begins anew" in retried.stdout
    assert summary(bad)["status"] == "completed" and "reason" not in summary(bad)


@pytest.mark.slow
def test_a_diverged_run_is_reported_among_good_ones(train, tmp_path):
    sweep = ["-m", *SMALL, "name=d", "wandb.mode=disabled", "optimizer.lr=1e12,0.1", "seed=0"]
    done = train(*sweep)
    assert done.returncode == 1
    states = {summary(run)["status"] for run in run_folders(tmp_path).values()}
    assert states == {"diverged", "completed"}
    assert "diverged: multirun/d/" in done.stdout
    assert "diverged" in (tmp_path / "multirun" / "d" / "report" / "report.md").read_text()

    (bad,) = (r for r in run_folders(tmp_path).values() if summary(r)["status"] == "diverged")
    (bad / "checkpoints").mkdir(exist_ok=True)
    (bad / "checkpoints" / "last.pt").write_text("tried anew, it is not to be read")
    retried = train(*sweep, "retry_failed=true")
    assert retried.returncode == 1 and summary(bad)["status"] == "diverged", retried.stdout
    assert len(json.loads((bad / "provenance.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.depth=20,21", "seed=0,1"], "in run 3 of 4 (model.depth=21 seed=0): model.depth"),
        (["seed=0,1", "trainer.accumulate=99"], "(seed=0): trainer.batch_size must be 198 or more"),
        (["seed=0,1", "resume=outputs"], "resume= continues a single run"),
        (
            ["seed=0,1", "hydra.sweep.subdir=x"],
            "in run 2 of 2 (seed=1): it has the folder of run 1",
        ),
        (
            ["schedule.p_L=interval(0.3,1.0)"],
            "schedule.p_L is a range: it needs hydra/sweeper=optuna",
        ),
    ],
)
def test_a_mistake_in_any_run_is_found_before_the_first_begins(train, tmp_path, overrides, message):
    done = train("-m", *SMALL, *overrides)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_another_process_works_on_is_left_to_it(swept, train, tmp_path):
    shutil.copytree(swept[0] / "multirun", tmp_path / "multirun")
    run = run_folders(tmp_path)[min(run_folders(tmp_path))]
    (run / "summary.json").write_text(json.dumps(summary(run) | {"status": "running"}))
    from sdnet.lock import Lock

    lock = Lock(run / "lock")
    lock.acquire()
    try:
        done = train(*SWEEP)
        assert done.returncode == 0, done.stderr
        assert f"left to another process: multirun/s/{run.name}" in done.stdout
        refused = train(f"resume=multirun/s/{run.name}")
        assert refused.returncode == 1 and "is being worked on by process" in refused.stderr
    finally:
        lock.close()
    assert summary(run)["status"] == "running"


def test_a_preset_is_a_sweep_of_which_the_command_line_changes_the_values(train, tmp_path):
    done = train(*SMALL, "sweep=p_L_depth", "model.depth=8,14", "schedule.p_L=0.5", "show=true")
    assert done.returncode == 0, done.stderr
    assert "sweep multirun/digits: 2 runs: 2 to run" in done.stdout
    assert list(tmp_path.iterdir()) == []
