"""Several processes: the same training as one, in one run folder."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

from sdnet import processes
from sdnet.config.errors import ConfigError, RunError
from sdnet.training import distributed
from sdnet.training.distributed import ALONE, Lost, World
from tests import commands
from tests.commands import ROOT
from tests.training import steps

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo processes ended with, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    commands.run_two(ROOT, steps.main, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", steps.CASES, ids=" ".join)
def test_two_processes_end_alike_and_as_is_written_down(ranks, case):
    first, second = (rank[" ".join(case)] for rank in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = steps.trained_by_hand(*case)
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_what_is_said_by_one_process_is_heard_by_all(ranks):
    same = {"sum": [3.0, 20.0], "agree": [1, 5], "broadcast": 7}
    for rank, found in enumerate(ranks):
        assert found["exchanged"] == same | {"came_second": rank == 1}


SMALL = ["model.depth=8", "dataset.size=8", "wandb.mode=disabled", "trainer.device=cpu"]


TORCHRUNS = {}
SUBMITITS = {"SUBMITIT_EXECUTOR": "slurm", "TORCHELASTIC_RUN_ID": "ranks are in the environment"}


@pytest.mark.parametrize(
    "starter, rank, what, ends, status, reason",
    [
        (TORCHRUNS, 1, steps.raises, [1, 1], "failed", "on rank 1: ValueError: as planned"),
        (TORCHRUNS, 0, steps.raises, [1, 0], "failed", "ValueError: as planned"),
        (SUBMITITS, 1, steps.raises, [1, 1], "failed", "on rank 1: ValueError: as planned"),
        (SUBMITITS, 0, steps.raises, [1, 0], "failed", "ValueError: as planned"),
        (TORCHRUNS, 1, steps.is_killed, [1, -9], "interrupted", str(Lost())),
    ],
)
def test_a_process_that_fails_ends_the_others_and_the_reason_is_on_record(
    tmp_path, starter, rank, what, ends, status, reason
):
    together = commands.Together()
    processes = [
        commands.Forked(
            tmp_path, together.of(r) | starter, steps.train_and_fail, rank, what, *SMALL
        )
        for r in range(2)
    ]
    printed = [process.communicate(timeout=60) for process in processes]
    (run,) = tmp_path.glob("outputs/*/*")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == (status, reason)
    assert [process.returncode for process in processes] == ends
    (_, err), (out_2, err_2) = printed
    assert f"{status}: {reason}" in err and "Traceback" not in err and out_2 == ""
    assert ("resume=outputs/" in err) == (status == "interrupted")
    if what is steps.raises:
        assert "in raises" in (run / "train.log").read_text()  # the traceback, whoever had it
    assert ("error on rank 1: ValueError: as planned" in err_2) == ("rank 1" in reason)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] "


@pytest.mark.parametrize(
    "error, told",
    [
        (RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:1"), Lost),
        (RuntimeError(GLOO + "Timed out waiting 1800000ms for recv operation"), Lost),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), Lost),
        (dist.DistBackendError("NCCL error\nncclRemoteError: A call failed possibly due"), Lost),
        (dist.DistBackendError("Duplicate GPU detected"), dist.DistBackendError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (torch.AcceleratorError("CUDA error: an illegal access"), torch.AcceleratorError),
        (RuntimeError("Tensors must be contiguous"), RuntimeError),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[-30:],
)
def test_only_where_another_process_is_gone_it_is_lost(monkeypatch, error, told):
    def all_reduce(*arguments, **more):
        raise error

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    world = World(0, 2, 0, HashStore())
    for tensor in (torch.zeros(1), torch.zeros(1, device="meta")):  # by gloo, and by another
        with pytest.raises(told) as raised:
            distributed._all_reduce(tensor, world)
        assert type(raised.value) is told
        assert error in (raised.value, raised.value.__cause__)


@pytest.mark.parametrize(
    "seen, found",
    [
        ([["a", "b"], ["a", "b"]], ["cuda:0", "cuda:1"]),
        ([["a"], ["b"]], ["cuda:0", "cuda:0"]),  # a scheduler shows each of them its own
        ([["a"], ["a"]], 1),
        ([["a", "b"]] * 3, 2),
    ],
    ids=["several", "own", "shared", "too few"],
)
def test_each_process_has_a_cuda_device_of_its_own_or_all_say_which_has_none(
    monkeypatch, seen, found
):
    here, store = threading.local(), HashStore()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(here.seen))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(here, "current", index))
    properties = lambda index: SimpleNamespace(uuid=here.seen[index])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)

    def own_device(rank):
        here.seen = seen[rank]
        try:
            device = distributed._own_device("auto", rank, len(seen), rank, store)
        except ConfigError as error:
            return str(error)
        assert here.current == device.index
        return str(device)

    with ThreadPoolExecutor(len(seen)) as pool:
        said = list(pool.map(own_device, range(len(seen))))
    if isinstance(found, list):
        assert said == found
    else:
        assert len(set(said)) == 1 and f"rank {found} of {len(seen)} has none" in said[0]
        assert said[0].startswith("trainer.device=auto needs a CUDA device for each process")


@pytest.fixture
def second(monkeypatch):
    """Has this process be the second of two, the first of which has ended; what torch is told."""
    store, told = HashStore(), []
    for key, value in (("sdnet/device0", "a"), (distributed.ENDED, distributed.WELL)):
        store.set(key, value)
    monkeypatch.setattr(processes, "environment", lambda: (1, 2, 1))
    monkeypatch.setattr(dist, "rendezvous", lambda *arguments: iter([(store, 1, 2)]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: told.append(("current", index)))
    properties = lambda index: SimpleNamespace(uuid="ab"[index])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)

    def init_process_group(backend, store, rank, world_size, device_id=None):
        told.append((backend, rank, world_size, device_id))

    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: told.append("destroyed"))
    return store, told


def test_nccl_connects_the_devices_before_a_run_begins(second):
    _, told = second
    with distributed.joined("auto"):
        device = torch.device("cuda", 1)
        assert told == [("current", 1), ("cpu:gloo,cuda:nccl", 1, 2, device)]
    told.clear()
    with distributed.joined("cpu"):
        assert told == [("gloo", 1, 2, None)]


@pytest.mark.parametrize(
    "first, error, expected",
    [
        (distributed.WELL, None, ["destroyed"]),
        (distributed.WELL, processes.Stopped(), ["destroyed"]),  # as all of them
        (distributed.WELL, RunError("failed"), []),
        (distributed.BADLY, None, []),
    ],
    ids=["well", "stopped", "failed", "failed elsewhere"],
)
def test_the_group_is_destroyed_only_where_all_of_them_do_it(second, first, error, expected):
    store, told = second
    store.set(distributed.ENDED, first)
    with suppress(RunError, processes.Stopped), distributed.joined("cpu"):
        told.clear()
        if error is not None:
            raise error
    assert told == expected


def test_under_submitit_a_process_learns_its_rank_from_it(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")

    class Exported:
        def export(self, set_cuda_visible_devices, overwrite):
            assert (set_cuda_visible_devices, overwrite) == (False, True)
            for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
                monkeypatch.setenv(name, value)

    tasks = SimpleNamespace(num_tasks=1)
    helpers = SimpleNamespace(TorchDistributedEnvironment=Exported)
    submitit = SimpleNamespace(JobEnvironment=lambda: tasks, helpers=helpers)
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    ask = processes.environment.__wrapped__
    assert ask() == (0, 1, 0)
    tasks.num_tasks = 8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "torchrun knows better")
    assert ask() == (0, 1, 0)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert ask() == (5, 8, 1)


def test_a_process_knows_when_the_first_one_has_ended_or_is_gone():
    world = World(rank=1, size=2, store=HashStore())
    assert not world.has_ended() and world.error_elsewhere() is None
    world.store.set(distributed.ERROR, json.dumps(["on rank 1: why", "trace"]))
    assert world.error_elsewhere() == "on rank 1: why" and not world.has_ended()
    world.store.set(distributed.ENDED, "1")
    assert world.has_ended()
    gone = World(rank=1, size=2, store=None)  # asking it raises
    assert gone.has_ended() and gone.error_elsewhere() is None
    assert ALONE.start() and ALONE.error_elsewhere() is None


@pytest.mark.slow
def test_the_command_is_stopped_and_resumed_in_one_folder(train_in, tmp_path):
    process = train_in(tmp_path, *SMALL, "trainer.epochs=8", background=True, start=TORCHRUN)
    while process.poll() is None and not list(tmp_path.glob("outputs/*/*/metrics.csv")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    (run,) = tmp_path.glob("outputs/*/*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted", err
    assert 0 < summary["steps"] < 88
    relative = str(run.relative_to(tmp_path))
    assert out.count(f"torchrun --nproc-per-node=2 {ROOT / 'train.py'} resume={relative}") == 1

    again = (f"resume={relative}", "wandb.mode=disabled")
    (out, _), second = commands.run_two(tmp_path, commands.train, *again)
    assert out.count("test error    ") == 1 and second == ("", "")
    assert (run / "figures" / "curves.png").is_file()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["steps"] == 88
    assert summary["test_error"] < 30
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert list(tmp_path.glob("outputs/*/*")) == [run]
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["processes"] == provenance["resumed"][0]["processes"] == 2


def test_a_process_begins_only_when_the_first_has_found_something_to_do():
    for key, begins in ((distributed.STARTED, True), (distributed.ENDED, False)):
        world = World(rank=1, size=2, local_rank=1, store=HashStore())
        world.store.set(key, "1")
        assert world.start() == begins


def as_one_of_two(rank):
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}


def test_a_sweep_under_torchrun_is_refused_with_the_way_that_works(train, tmp_path):
    done = train("-m", "seed=0,1", **as_one_of_two(0))
    assert done.returncode == 1 and "hydra/launcher=submitit_slurm_multi_gpu" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_by_the_first_process_alone(train, tmp_path):
    done = [train("trainer.epochs=0", **as_one_of_two(rank)) for rank in range(2)]
    assert [d.returncode for d in done] == [1, 1]
    assert "trainer.epochs must be" in done[0].stderr and done[1].stderr == done[1].stdout == ""
    assert list(tmp_path.iterdir()) == []


LEAVES = """
import threading
from datetime import timedelta
from sdnet.training import distributed

asked = distributed.World.has_ended

def has_ended(world):
    if threading.current_thread() is threading.main_thread():
        return asked(world)
    try:
        world.store.wait(["never"], timedelta(seconds=0.3))  # the store is slow to answer
    except RuntimeError:
        return False

distributed.World.has_ended, distributed.POLL_SECONDS = has_ended, 0.001
distributed.World.is_broken = lambda world: False
with distributed.joined("cpu") as world:
    world.meet()
"""


WAITS = """
import os, signal, threading
import torch.distributed as dist
from sdnet.training import distributed

distributed.GRACE_SECONDS, distributed.POLL_SECONDS = 0.2, 0.01
store = dist.HashStore()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as after the last step
if rank_0_ends:
    signal.signal(signal.SIGALRM, lambda *_: store.set(distributed.ENDED, distributed.WELL))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
world = distributed.World(1, 2, 1, store)
threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM)).start()
world._leave(False)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
"""


@pytest.mark.parametrize("rank_0_ends, status", [(True, 0), (False, 128 + signal.SIGTERM)])
def test_a_process_does_not_wait_for_a_first_one_that_was_killed(tmp_path, rank_0_ends, status):
    process = commands.Forked(tmp_path, {}, exec, WAITS, {"rank_0_ends": rank_0_ends})
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err


def test_a_process_that_asks_a_slow_store_at_the_end_does_not_abort():
    together = commands.Together()
    # A real interpreter, whose end is what counts.
    second = subprocess.Popen(
        [sys.executable, "-c", LEAVES],
        cwd=ROOT,
        env=commands.environment(**together.of(1)),
        stderr=subprocess.PIPE,
        text=True,
    )
    first = commands.Forked(ROOT, together.of(0), exec, LEAVES, {})
    assert first.communicate(timeout=60) == ("", "")
    _, err = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err  # -6: aborted
