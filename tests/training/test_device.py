"""Devices and torch's switches; CUDA and the processor's counters are stubbed."""

import ctypes
import logging
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from sdnet.config.errors import ConfigError
from sdnet.launch import build
from sdnet.models.fast import fused
from sdnet.training import device as devices
from sdnet.training.distributed import World
from tests.config.composed import composed

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """Has torch see so many CUDA devices; returns those that were made current."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        current = []
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return current

    return see


@pytest.fixture
def switches(monkeypatch):
    """torch's switches, put back at the end."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark = before
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(
    ("count", "name", "local_rank", "expected"),
    [
        (0, "auto", None, "cpu"),
        (2, "auto", None, "cuda"),
        (2, "cpu", None, "cpu"),
        (2, "cpu", 1, "cpu"),
        (2, "cuda:1", None, "cuda:1"),
        (2, "auto", 1, "cuda:1"),
        (2, "cuda", 0, "cuda:0"),
        (1, "cuda", 1, "cuda:0"),  # a scheduler shows each process its own
        (0, "cuda", None, "cuda is not there: this machine has 0 CUDA"),
        (2, "cuda:2", None, "cuda:2 is not there: this machine has 2 CUDA"),
        (2, "cuda", 2, "cuda:2 is not there"),
        (2, "cuda:0", 0, "must be auto, cpu or cuda with several processes, got cuda:0"),
    ],
)
def test_a_device_is_that_of_the_name_or_of_the_process_or_refused(
    cuda, count, name, local_rank, expected
):
    cuda(count)
    if " " in expected:
        with pytest.raises(ValueError, match=f"^device {expected}"):
            devices.resolve(name, local_rank)
    else:
        assert devices.resolve(name, local_rank) == torch.device(expected)


@pytest.mark.parametrize(
    "there, built_for, given, why",
    [
        ("driver", "13.0", None, "for CUDA 13.0: The driver is too old (found version 12020))"),
        ("nvidia-smi", "13.0", "1", "for CUDA 13.0: The driver is too old (found"),
        ("driver", "13.0", "", "CUDA_VISIBLE_DEVICES= hides every GPU"),
        ("driver", "13.0", "-1", "CUDA_VISIBLE_DEVICES=-1 hides every GPU"),
        ("driver", None, None, "is built without CUDA)"),
        (None, "13.0", None, None),
    ],
)
def test_a_gpu_that_torch_does_not_find_is_told_once_with_the_reason(
    cuda, monkeypatch, caplog, tmp_path, there, built_for, given, why
):
    def init():
        raise RuntimeError("The driver is too old (found version 12020). Please update it")

    cuda(0)
    devices.warn_of_idle_gpu.cache_clear()
    driver = tmp_path / "version"
    if there == "driver":
        driver.touch()
    monkeypatch.setattr(devices, "NVIDIA", driver)
    monkeypatch.setattr(devices.shutil, "which", lambda name: name if name == there else None)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    assert devices.resolve("cpu") == CPU and caplog.messages == []  # as it was asked for
    assert devices.resolve("auto") == devices.resolve("auto") == CPU
    devices.warn_of_idle_gpu.cache_clear()
    assert len(caplog.messages) == (why is not None)
    assert why is None or why in caplog.messages[0]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_cuda_run_has_the_switches_of_its_settings(
    cuda, switches, monkeypatch, precision, deterministic
):
    current = cuda(2)
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: pytest.fail("is for the CPU"))
    for device in (torch.device("cuda:1"), CUDA):
        devices.configure(device, precision, 1, deterministic)
    assert current == [torch.device("cuda:1")]
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert tf32 == (precision == "tf32",) * 2
    assert torch.backends.cudnn.benchmark != deterministic
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory != deterministic
    workspace = devices.os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    assert workspace == (":4096:8" if deterministic else None)


def test_a_cpu_run_has_its_threads_and_the_next_one_torchs(switches, monkeypatch):
    monkeypatch.setattr(devices, "DEFAULT_THREADS", 3)
    kept = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: kept.append(1))
    for threads, expected in ((2, 2), (None, 3)):
        devices.configure(CPU, "fp32", threads, threads == 2)
        assert torch.get_num_threads() == expected
        assert torch.are_deterministic_algorithms_enabled() == (threads == 2)
    assert kept == [1, 1]


@pytest.mark.parametrize(
    ("capabilities", "emulated"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "x86_64"}, True),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_a_processor_that_emulates_bf16_is_one_warning(
    switches, monkeypatch, caplog, capabilities, emulated
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    caplog.set_level(logging.WARNING, "sdnet.device")
    devices.configure(CPU, "fp32", 1, False)
    assert not caplog.records
    devices.configure(CPU, "bf16", 1, False)
    assert ["no bf16 instructions" in record.getMessage() for record in caplog.records] == (
        [True] * emulated
    )


@pytest.mark.skipif(sys.platform != "linux", reason="is for glibc")
def test_freed_memory_is_kept(monkeypatch):
    options = []
    library = SimpleNamespace(mallopt=lambda *given: options.append(given))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    devices.keep_freed_memory()
    assert options == [(-4, 0), (-1, -1)]  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    devices.keep_freed_memory()  # a library without it is left alone


def test_the_kernels_are_on_for_the_run_that_wants_them_alone(monkeypatch, caplog):
    called = []
    monkeypatch.setattr(fused, "enable", lambda: called.append("on"))
    monkeypatch.setattr(fused, "disable", lambda: called.append("off"))
    devices.fuse(CPU, True, True)
    devices.fuse(CPU, False, True)
    assert called == ["off", "on", "off"] and not caplog.records


def test_the_context_of_cuda_is_lost_where_it_answers_no_more(monkeypatch):
    def synchronize():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert not devices.context_is_lost()  # it was never asked for anything
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert devices.context_is_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not devices.context_is_lost()


def test_other_load_is_the_processor_time_of_others_since_the_last_look(monkeypatch):
    class Times(tuple):
        """As psutil's: fields in a tuple."""

        def __new__(cls, **fields):
            times = super().__new__(cls, fields.values())
            times.__dict__.update(fields)
            return times

    class Process:
        def __init__(self, times, children=(), parent=None):
            self.times, self.inner, self.above = times, children, parent

        def cpu_times(self):
            if self.times is None:
                raise psutil.NoSuchProcess(1)
            names = ("user", "system", "children_user", "children_system")
            return SimpleNamespace(**dict(zip(names, self.times, strict=True)))

        def children(self, recursive):
            assert recursive
            return self.inner

        def parent(self):
            return self.above

    machine = {"user": 100.0, "system": 50.0, "idle": 1000.0, "iowait": 7.0}
    machine |= {"guest": 3.0, "guest_nice": 2.0, "steal": 1.0}
    own = Process([10, 5, 2, 1], [Process([4, 3, 2, 1]), Process(None)])
    own.above = Process([20, 10, 4, 2], [own, Process([10, 5, 2, 1])])
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(**machine))
    monkeypatch.setattr(psutil, "Process", lambda: own)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    load = devices.OtherLoad()
    assert load.start() == 0.0
    machine |= {"user": 190.0, "system": 80.0, "idle": 2000.0, "iowait": 17.0}  # 120 of work
    machine |= {"guest": 8.0, "guest_nice": 6.0, "steal": 4.0}  # is in user, or is not of here
    own.times = [20, 10, 4, 2]  # 18 more
    own.inner[0].times = [5, 4, 3, 2]  # 4 more
    assert load.start() == pytest.approx(120 - 18 - 4, rel=1e-12)
    assert load.start() == 0.0
    own.times = [200, 10, 4, 2]
    assert load.start() == 0.0  # rounding is no negative load
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    all_of_them = devices.OtherLoad()
    all_of_them.start()
    machine["user"] += 50
    own.above.times = [21, 11, 5, 3]
    own.above.inner[1].times = [13, 5, 2, 1]
    own.times = [205, 10, 4, 2]
    assert all_of_them.start() == pytest.approx(50 - 4 - 3 - 5, rel=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_only_bf16_is_another_type_within_a_forward_pass(precision):
    x = torch.ones(2, 2)
    with devices.autocast(CPU, precision):
        found = (x @ x).dtype
    assert found == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_what_timings_depend_on_is_described(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "a processor"})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card at {device}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert devices.describe(CPU) == {"device": "cpu", "device_name": "a processor", "threads": 5}
    monkeypatch.setattr(psutil, "cpu_count", lambda: 24)
    card = {"device": "cuda", "device_name": "a card at cuda:1", "threads": 5}
    card |= {"processor": "a processor", "cores": 24}
    assert devices.describe(torch.device("cuda:1")) == card | {"per_gpu": 1}
    monkeypatch.setenv("SDNET_PER_GPU", "3")
    assert devices.describe(torch.device("cuda:1")) == card | {"per_gpu": 3}
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(devices.platform, "processor", lambda: "")
    monkeypatch.setattr(devices.platform, "machine", lambda: "a machine")
    assert devices.describe(CPU)["device_name"] == "a machine"


def test_a_run_has_the_device_and_the_switches_of_its_settings(cuda, switches, monkeypatch):
    cuda(4)
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: None)
    given = []
    monkeypatch.setattr(devices, "fuse", lambda *how: given.append(how))
    config = composed("trainer.device=cpu", "trainer.threads=2", "trainer.deterministic=true")
    assert build.build_device(config) == CPU
    assert torch.get_num_threads() == 2 and torch.are_deterministic_algorithms_enabled()
    config["trainer"] |= {"device": "cuda", "precision": "tf32", "deterministic": False}
    config["trainer"] |= {"fused": True, "channels_last": False, "sync_batchnorm": True}
    assert build.build_device(config) == CUDA
    assert torch.backends.cudnn.allow_tf32 and not torch.are_deterministic_algorithms_enabled()
    assert build.build_device(config, World(3, 4, 1)) == torch.device("cuda:1")
    assert given == [
        (CPU, False, True),
        (CUDA, True, False),
        (torch.device("cuda:1"), True, False),
    ]
    config["trainer"]["device"] = "cpu"
    with pytest.raises(ConfigError, match=r"trainer\.precision tf32 needs a CUDA device"):
        build.build_device(config)
