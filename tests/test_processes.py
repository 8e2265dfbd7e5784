import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from sdnet import processes
from tests.commands import ROOT


@pytest.mark.parametrize(
    "mine, files, expected",
    [
        (4, {}, 4),
        (1, {}, 1),
        (None, {}, 6),  # where the system has no affinity: the machine's
        (4, {"cpu.max": "max 100000\n"}, 4),
        (4, {"cpu.max": "150000 100000\n"}, 2),
        (4, {"cpu.max": "10000 100000\n"}, 1),
        (4, {"cpu.max": "900000 100000\n"}, 4),
        (4, {"cpu.max": "nonsense"}, 4),
        (4, {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 4),
        (4, {"cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_cores_are_those_of_the_job_not_of_the_machine(
    tmp_path, monkeypatch, mine, files, expected
):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    quotas = (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us")
    monkeypatch.setattr(processes, "QUOTAS", tuple(map(str, quotas)))
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    if mine is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mine)), raising=False)
    assert processes.cores() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is found at the start only")
@pytest.mark.parametrize("orphaned", ["before", "after"])
def test_a_process_ends_with_the_one_that_started_it(tmp_path, orphaned):
    code = f"""
import multiprocessing, os, signal, sys, time
from pathlib import Path
from sdnet import processes

def work():
    parent = os.getppid()
    Path("pid").write_text(str(os.getpid()))
    while {orphaned == "before"} and os.getppid() == parent:
        time.sleep(0.01)
    processes.stand_apart(0)
    Path("began").touch()
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=work).start()
while not Path({"pid" if orphaned == "before" else "began"!r}).exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, check=False)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    if _lives(pid):
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it lives on")
    assert (tmp_path / "began").exists() == (orphaned == "after")


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_this_process_itself_goes_on():
    assert multiprocessing.parent_process() is None
    code = "from sdnet import processes; processes.end_with_parent(); print('on')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "on\n"
