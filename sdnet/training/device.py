"""The device a run computes on and the precision it computes in."""

import ctypes
import logging
import os
import platform
import sys
from contextlib import suppress
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sdnet.models.fast import fused

log = logging.getLogger(__name__)
DEFAULT_THREADS = torch.get_num_threads()  # a run before this one, in the same sweep, may change it


def resolve(name: str, local_rank: int | None = None) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:<n>`.

    Args:
        local_rank: where several processes of this machine work together, the number of this one,
            which is that of its CUDA device.

    Raises:
        ValueError: a CUDA device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and local_rank is not None:
        if device.index is not None:
            raise ValueError(f"device must be auto, cpu or cuda with several processes, got {name}")
        device = torch.device("cuda", cuda_index(local_rank))
        name = str(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name} is not there: this machine has {torch.cuda.device_count()} CUDA "
            f"device(s); allowed are auto, cpu and cuda:<n>"
        )
    return device


def configure(device: torch.device, precision: str, threads: int | None, deterministic: bool):
    """Sets torch's global switches for one run.

    Raises:
        ValueError: precision tf32 without CUDA.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("precision tf32 needs a CUDA device; on CPU it must be fp32 or bf16")
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        log.warning(
            "This processor has no bf16 instructions (avx512_bf16, amx_bf16): torch emulates them, "
            "many times slower than trainer.precision=fp32"
        )
    torch.set_num_threads(threads or DEFAULT_THREADS)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports inductor
        torch.use_deterministic_algorithms(deterministic)


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors free, instead of returning it to the system.

    glibc maps large blocks anew each time, and the first touch of each of their pages is a trip
    into the kernel: a tenth to a quarter of a training step on a CPU (`benchmarks/step_time.py`).
    """
    mmap_max, trim_threshold = -4, -1  # mallopt(3): no block of its own; the top is never trimmed
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, which has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, -1)


def count_on_cpu(model: nn.Module) -> None:
    """Puts on the CPU the number in which each BatchNorm counts its batches.

    Nothing reads it but a checkpoint, and on CUDA to add one takes the host as long as to launch a
    convolution.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None:
            module.num_batches_tracked = module.num_batches_tracked.cpu()


def fuse(device: torch.device, wanted: bool, channels_last: bool) -> None:
    """Switches the kernels of `sdnet.models.fast.fused` on or off; warns where there are none."""
    fused.disable()
    if not wanted:
        return
    try:
        if device.type != "cpu":
            raise RuntimeError(f"it is for the CPU, and this run is on {device}")
        if not channels_last:
            raise RuntimeError("it needs trainer.channels_last=true")
        fused.enable()
    except RuntimeError as error:
        log.warning("trainer.fused=true is without effect: %s", error)


def cuda_index(local_rank: int) -> int:
    """The CUDA device of a process; a scheduler may show each process nothing but its own."""
    return local_rank if torch.cuda.device_count() > 1 else 0


class OtherLoad:
    """Processor time that other programs on this machine take: with it timings differ."""

    def start(self) -> float:
        """Starts anew; returns the seconds since the last start, 0 at the first."""
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user
        busy -= getattr(times, "steal", 0.0)
        now = busy - self._own()
        before, self.now = getattr(self, "now", now), now
        return max(now - before, 0.0)

    def _own(self) -> float:
        """Processor time of this process, those it started, and those it shares its run with."""
        root = psutil.Process()
        if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
            root = root.parent() or root  # which started them all
        total = 0.0
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                t = process.cpu_times()
                total += t.user + t.system + t.children_user + t.children_system
        return total


def has_bf16() -> bool:
    """Whether this processor computes in bf16; assumed where torch cannot tell (not x86)."""
    known = torch.cpu.get_capabilities()
    if known.get("architecture") != "x86_64":
        return True
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass; does nothing unless the precision is bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def describe(device: torch.device) -> dict[str, Any]:
    """What the timings of a run depend on: device, processor and its threads."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = torch.cpu.get_capabilities().get("cpu_name", name)
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads()}
