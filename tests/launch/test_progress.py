import json

import pytest

from sdnet.launch import progress
from sdnet.runs.folder import RunFolder


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of four runs, of which the first `done` have taken 100 s each."""
    monkeypatch.setenv(progress.SWEEP, "[]")

    def sweep(done, running=0):
        progress.remember_runs(["a", "b", "c", "d"])
        folders = [RunFolder(tmp_path / name) for name in "abcd"]
        for folder in folders[: done + running]:
            if not folder.holds_run():
                folder.create({"seed": 0, "schedule": {"_target_": "mine.Square"}}, {})
        for folder in folders[:done]:
            folder.set_status("completed", result={"train_seconds": 90.0, "eval_seconds": 10.0})
        return folders

    return sweep


def test_a_run_says_its_place_in_the_sweep_and_the_time_that_is_left(sweep, tmp_path):
    folders = sweep(0)
    assert progress.place(folders[0]) == "run 1 of 4: "
    folders = sweep(1)
    assert progress.place(folders[1]) == "run 2 of 4, about 5 min left: "
    folders = sweep(3)
    assert progress.place(folders[3]) == "run 4 of 4, about 2 min left: "
    assert progress.place(RunFolder(tmp_path / "z")) == progress.number(RunFolder("z")) == ""
    assert progress.number(folders[2]) == "run 3"


def test_runs_at_the_same_time_share_what_is_left(sweep):
    folders = sweep(1, running=2)
    locks = [folder.lock() for folder in folders[1:3]]
    for lock in locks:
        lock.acquire()
    try:  # three are left, two at once: two rounds
        assert progress.place(folders[2]) == "run 3 of 4, about 3 min left: "
    finally:
        for lock in locks:
            lock.close()


def test_a_run_alone_has_no_place(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.SWEEP, raising=False)
    assert progress.place(RunFolder(tmp_path)) == ""


def test_the_names_go_to_other_processes(monkeypatch):
    monkeypatch.setenv(progress.SWEEP, "")
    progress.remember_runs(iter(["a", "b"]))
    import os

    assert json.loads(os.environ[progress.SWEEP]) == ["a", "b"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (47 * 3600 + 3540, "47 h 59 min"),
        (53 * 3600, "2 d 5 h"),
    ],
)
def test_a_time_in_words(seconds, text):
    assert progress.duration(seconds) == text


def test_a_damaged_run_beside_it_is_no_trouble_of_this_one(sweep):
    folders = sweep(2)
    (folders[0].path / "summary.json").write_text("half")
    assert progress.place(folders[2]) == "run 3 of 4, about 3 min left: "
