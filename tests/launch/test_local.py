"""`hydra/launcher=local`: processes in slots, that write down what they see."""

import os
import signal
from functools import partial

import pytest
import torch
from hydra.core.utils import JobStatus

from hydra_plugins.sdnet_launchers import Local
from sdnet import processes
from sdnet.config.errors import ConfigError, RunError
from sdnet.launch import local
from tests.commands import Forked
from tests.launch import slot_runs
from tests.launch.conftest import SMALL
from tests.launch.test_sweep import context

pytestmark = pytest.mark.usefixtures("loggers")


@pytest.fixture
def gpus(monkeypatch):
    """Has torch see so many GPUs under these names."""

    def see(count, names=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if names is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    return see


def test_each_run_at_once_has_one_of_the_gpus(gpus, monkeypatch):
    def found(device="auto", per_gpu=1, n_jobs=2):
        return [s.get("CUDA_VISIBLE_DEVICES") for s in local.slots(device, per_gpu, n_jobs)]

    gpus(4)
    assert found() == ["0", "1", "2", "3"]
    assert found("cuda", per_gpu=2) == ["0", "1", "2", "3"] * 2  # spread before they are shared
    assert [slot["SDNET_PER_GPU"] for slot in local.slots("auto", 2, 1)] == ["2"] * 8
    assert found("cpu", n_jobs=3) == [None] * 3
    gpus(2, "3, GPU-5f,9,1")
    assert found() == ["3", "GPU-5f"]  # CUDA ends at the first that is not there
    gpus(1, "MIG-a,MIG-b")  # of which CUDA counts one in a process
    assert found() == ["MIG-a", "MIG-b"]
    gpus(0, "")
    assert found(n_jobs=3) == [None] * 3

    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert local.slots("cpu", 1, 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert local.slots("cpu", 1, 9) == [{"OMP_NUM_THREADS": "1"}] * 9
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert local.slots("cpu", 1, 3) == [{"OMP_NUM_THREADS": "5"}] * 3


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["hydra.launcher.per_gpu=0"], r"hydra\.launcher\.per_gpu must be .* at least 1, got 0"),
        (["hydra.launcher.n_jobs=two"], r"hydra\.launcher\.n_jobs must be .*, got 'two'"),
        (["trainer.device=cuda:1"], r"trainer\.device must be auto, cpu or cuda .* got cuda:1"),
    ],
)
def test_what_makes_no_slots_is_refused(swept, overrides, message):
    cfg = swept(*SMALL, "hydra/launcher=local", *overrides)
    launcher = Local(cfg.hydra.launcher.per_gpu, cfg.hydra.launcher.n_jobs)
    with pytest.raises(ConfigError, match=message):
        launcher.setup(hydra_context=None, task_function=None, config=cfg)


def test_ten_runs_share_four_gpus_and_one_that_is_killed_costs_no_slot(
    gpus, monkeypatch, tmp_path, said
):
    monkeypatch.chdir(tmp_path)
    gpus(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calls = [(f"run {i}", (slot_runs.number_of, str(i))) for i in range(10)]
    answers = local.run_in_slots(calls, local.slots("auto", 1, 1))
    killed = [str(answers.pop(i)) for i in (6, 3)]
    assert killed == ["its process ended (exit status 7)", "its process ended (SIGKILL)"]
    assert answers[:3] == [("0", "1"), ("1", "1"), ("2", "1")]
    assert {threads for _, threads in answers[3:]} == {"1"}
    told = [("run 3", killed[1]), ("run 6", killed[0])]
    assert sorted(said) == [f"ERROR: {name}: {how}; the sweep goes on" for name, how in told]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_hydras_jobs_come_back_as_they_ended(swept, tmp_path, said):
    local_ = ["hydra/launcher=local", "hydra.launcher.n_jobs=4", "hydra.sweep.subdir=run-${seed}"]
    cfg = swept(*SMALL, *local_)
    launcher = Local(cfg.hydra.launcher.per_gpu, cfg.hydra.launcher.n_jobs)
    launcher.setup(hydra_context=context(), task_function=slot_runs.task, config=cfg)
    good, fault, busy, killed = launcher.launch([[f"seed={i}", *SMALL] for i in range(4)], 5)
    assert (good.status, good.return_value) == (JobStatus.COMPLETED, 5.0)
    errors = [job._return_value for job in (fault, busy, killed)]
    assert all(job.status == JobStatus.FAILED for job in (fault, busy, killed))
    assert [type(error) for error in errors] == [RuntimeError, RunError, RunError]
    told = ["ValueError: a fault", "another has it", "its process ended (SIGKILL)"]
    assert [str(error) for error in errors] == told
    assert said == [f"ERROR: multirun/digits/run-3: {told[-1]}; the sweep goes on"]


@pytest.fixture
def asleep(tmp_path, request):
    """A sweep with two runs at once, and their folders."""
    background = getattr(request, "param", False)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    sweep = partial(slot_runs.several_asleep, background=background)
    process = Forked(tmp_path, {}, sweep, *map(str, folders))
    slot_runs.wait_for(lambda: all((folder / "asleep").exists() for folder in folders))
    return process, folders


@pytest.mark.parametrize(
    ("asleep", "number"),
    [
        *((False, number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)),
        *((True, number) for number in (signal.SIGTERM, signal.SIGKILL)),
    ],
    indirect=["asleep"],
)
def test_runs_save_before_the_sweep_ends_however_it_is_ended(asleep, number):
    process, folders = asleep
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    saved = lambda: all((folder / "saved").exists() for folder in folders)  # noqa: E731
    if number == signal.SIGKILL:  # then nobody waits for them
        slot_runs.wait_for(saved)
    assert saved()
    assert "Traceback" not in out + err


def test_a_second_signal_waits_for_no_run(asleep):
    process, folders = asleep
    (folders[1] / "hurry").touch()
    process.send_signal(signal.SIGINT)
    slot_runs.wait_for((folders[1] / "asked").exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT and not (folders[1] / "saved").exists()
