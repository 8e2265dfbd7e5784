import io
import logging
import os

import pytest
from rich.console import Console

from sdnet.listeners.board import Board
from sdnet.runs.folder import COLUMNS, RunFolder


@pytest.fixture
def said(monkeypatch):
    log, lines = logging.getLogger("sdnet"), []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.DEBUG)
    return lines


def run(tmp_path, name):
    folder = RunFolder(tmp_path / name)
    folder.create({"seed": 0, "schedule": {"_target_": "mine.Square"}}, {})
    return folder


def test_each_run_that_is_computed_has_a_bar_and_its_end_is_told(tmp_path, said):
    one, two, late = (run(tmp_path, name) for name in ("one", "two", "late"))
    new = RunFolder(tmp_path / "new")
    runs = {"run [/1]": (one, 4), "run 2": (two, 4), "run 3": (late, 4), "run 4": (new, 4)}
    locks = [folder.lock() for folder in (one, two)]
    for lock in locks:
        lock.acquire()
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Board(console, runs) as board:
        board.look()
        assert [task.description for task in board.progress.tasks] == ["run [/1]", "run 2"]
        row = dict.fromkeys(COLUMNS, 0.5) | {"epoch": 3, "val_error": 2.345}
        one.append_row(row)
        two.append_row(row | {"val_error": None})
        board.look()
        first, second = board.progress.tasks
        assert (first.completed, first.total, second.completed) == (3, 4, 3)
        assert first.fields["said"] == "epoch 3/4  loss 0.5000  val err 2.35"
        assert second.fields["said"] == "epoch 3/4  loss 0.5000"
        one.set_status("completed", result={"test_error": 1.234})
        two.set_status("diverged", "why")
        for lock in locks:
            lock.close()
        board.look()
        assert board.progress.tasks == []
        assert said == ["run [/1]: done, 1.23 % test error", "run 2: diverged"]
        os.truncate(late.path / "summary.json", 3)  # half written: looked at again later
        board.look()
    assert len(said) == 2 and not board.progress.live.is_started


def test_the_folders_are_followed_without_being_asked(tmp_path, said, monkeypatch):
    monkeypatch.setattr("sdnet.listeners.board.SECONDS", 0.01)
    folder = run(tmp_path, "one")
    lock = folder.lock()
    lock.acquire()
    with Board(Console(file=io.StringIO(), force_terminal=True), {"run 1": (folder, 4)}) as board:
        while not board.tasks:
            pass
        folder.set_status("completed", result={"test_error": 0.0})
        lock.close()
    assert said == ["run 1: done, 0.00 % test error"]
