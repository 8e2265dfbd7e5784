import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from sdnet import lock as locks
from sdnet.lock import Lock, Locked
from sdnet.runs.folder import RunFolder


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WATCH_SECONDS", 0.1)
    return tmp_path / "lock"


def holder(**changes):
    """A lock file's content that says: a living process of this machine."""
    own = os.getpid()
    living = {"host": "here", "process": own, "started": locks._started(own)}
    return json.dumps(living | {"space": locks._space(), "token": "other"} | changes)


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_held_lock_is_refused_by_name_and_free_after_close(path):
    first, second = Lock(path), Lock(path)
    first.acquire()
    with pytest.raises(Locked, match=rf"process {os.getpid()} on "):
        second.acquire()
    first.close()
    assert not path.exists()
    second.acquire()
    second.close()
    assert list(path.parent.iterdir()) == []


def test_without_hard_links_only_one_has_the_lock_as_well(path, monkeypatch):
    def link(*_):
        raise PermissionError("a file system without hard links")

    monkeypatch.setattr(os, "link", link)
    first = Lock(path)
    first.acquire()
    assert locks.read_holder(path)["token"] == first.token
    with pytest.raises(Locked, match=rf"process {os.getpid()} on "):
        Lock(path).acquire()
    first.close()
    assert list(path.parent.iterdir()) == []


def test_a_killed_process_on_this_machine_loses_its_lock_at_once(path):
    code = "import sys, time; from pathlib import Path; from sdnet.lock import Lock\n"
    code += "Lock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=os.path.dirname(__file__) + "/.."
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(Locked, match=f"process {process.pid}"):
        Lock(path).acquire()
    process.kill()  # not yet reaped: a zombie has the id still
    deadline = time.monotonic() + 10
    while locks.is_alive(path, locks.read_holder(path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    taken = Lock(path)
    taken.acquire()
    assert locks.read_holder(path)["token"] == taken.token
    taken.close()
    process.wait()


@pytest.mark.parametrize(
    "content, seconds, alive",
    [
        (holder(), 1000, True),  # seen to live here, whatever its heartbeat says: suspended
        (holder(started=1), 0, False),  # its id is another process's now
        (holder(space="elsewhere"), 0, True),
        (holder(space="elsewhere"), 85, True),
        (holder(space="elsewhere"), 95, False),
        (holder(space=None), 0, True),
        ("", 0, True),  # being written
        ("{half", 95, False),
        ("7", 95, False),
        ("[" * 4000, 95, False),
        (holder(process="../self"), 95, False),
        (holder(token="../../x"), 95, False),
        (holder(host=None), 95, False),
        ('{"space": ' + json.dumps(locks._space()) + "}", 95, False),
    ],
    ids=[
        *("suspended", "id", "elsewhere", "late", "silent", "unknown", "empty", "damaged"),
        *("number", "deep", "process", "token", "host", "nobody"),
    ],
)
def test_a_lock_is_stale_when_its_process_or_its_heartbeat_is_gone(path, content, seconds, alive):
    assert 5 * locks.BEAT_SECONDS <= locks.STALE_SECONDS  # one that is late is no lost one
    path.write_text(content)
    age(path, seconds)
    assert locks.is_alive(path, locks.read_holder(path)) == alive
    lock = Lock(path)
    if alive:
        with pytest.raises(Locked):
            lock.acquire()
        assert path.read_text() == content
    else:
        lock.acquire()
        lock.close()
    assert {p.name for p in path.parent.iterdir()} <= {"lock"}


def test_a_fresh_lock_taken_for_stale_is_left_alone(path):
    path.write_text(holder(token="fresh"))
    mine = path.with_name("mine")
    mine.write_text(holder(token="mine"))
    assert not Lock(path)._take_over(mine, {"token": "stale"})
    assert locks.read_holder(path)["token"] == "fresh"
    assert {p.name for p in path.parent.iterdir()} == {"lock", "mine"}
    assert Lock(path)._take_over(mine, {"token": "fresh"})
    assert locks.read_holder(path)["token"] == "mine"
    assert [p.name for p in path.parent.iterdir()] == ["lock"]


def test_only_one_of_several_takes_a_stale_lock_over(path):
    for _ in range(20):
        path.write_text(holder(started=1))
        contenders = [Lock(path) for _ in range(8)]
        got = []

        def contend(lock, got=got):
            with contextlib.suppress(Locked):
                lock.acquire()
                got.append(lock)

        threads = [threading.Thread(target=contend, args=(lock,)) for lock in contenders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 and got[0].held()
        got[0].close()
        assert list(path.parent.iterdir()) == []


def test_the_heartbeat_keeps_a_lock_fresh_and_notices_its_loss(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    lock = Lock(path)
    lock.acquire()
    age(path, 1000)
    deadline = time.monotonic() + 10
    while time.time() - path.stat().st_mtime > 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - path.stat().st_mtime < 100 and not lock.lost
    path.write_text(holder())
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock.lost
    lock.close()
    assert locks.read_holder(path)["token"] == "other"  # not ours to remove


def test_a_run_whose_process_is_gone_is_interrupted(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert run.state() == "new"
    run.create({"seed": 0, "schedule": {"_target_": "mine.Square"}}, {})
    assert run.state() == "interrupted"
    (run.path / "lock").write_text(holder())
    assert run.state() == "running" and run.ended() == "interrupted"
    (run.path / "lock").write_text(holder(started=1))
    run.set_status("failed", "because")
    assert run.state() == "failed"


def test_a_lock_that_beats_by_a_slow_clock_is_not_taken_over(path):
    path.write_text(holder(space="elsewhere"))
    stopped = threading.Event()

    def beat():
        for seconds in range(3600, 3000, -1):  # an hour behind, but it goes on
            if stopped.wait(0.01):
                return
            age(path, seconds)

    thread = threading.Thread(target=beat)
    age(path, 3600)
    thread.start()
    try:
        with pytest.raises(Locked):
            Lock(path).acquire()
    finally:
        stopped.set()
        thread.join()
    assert locks.read_holder(path)["token"] == "other"
    Lock(path).acquire()  # it has stopped


def test_a_dead_process_of_this_machine_is_not_watched(path, monkeypatch):
    monkeypatch.setattr(locks, "WATCH_SECONDS", 1000.0)
    path.write_text(holder(started=1))
    Lock(path).acquire()
