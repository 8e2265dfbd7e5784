"""The device a run computes on and the precision it computes in."""

import ctypes
import logging
import os
import platform
import shutil
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from sdnet.models.fast import fused
from sdnet.models.norms import batch_norms

log = logging.getLogger(__name__)
PER_GPU = "SDNET_PER_GPU"  # in the environment of runs of which several share a GPU: how many
NVIDIA = Path("/proc/driver/nvidia/version")  # of a driver that is loaded
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
        if name == "cpu":
            warn_of_idle_gpu()
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


@cache  # once in a process
def warn_of_idle_gpu() -> None:
    """Says why torch, which finds no GPU, cannot use the one that this machine has."""
    if not NVIDIA.exists() and shutil.which("nvidia-smi") is None:
        return
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA"
    elif given is not None and given.strip() in ("", "-1"):
        why = f"CUDA_VISIBLE_DEVICES={given} hides every GPU"
    else:
        why = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        try:
            torch.cuda.init()
        except Exception as error:  # e.g. that the driver is too old, and which version it is
            why += f": {str(error).partition('. ')[0].strip()}"
    log.warning(
        "This machine has an NVIDIA driver, but the run is on the CPU, many times slower: torch "
        "finds no GPU (%s). trainer.device=cpu is the CPU without this warning",
        why,
    )


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process may use.

    The driver is asked for their number, and no GPU is touched.
    """
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in given.split(",")]
    # Of several parts of a GPU (MIG) a process sees the first alone; of other names those before
    # the first that is not there.
    return names if names[0].startswith("MIG-") else names[:count]


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
        allow_tf32(precision == "tf32")
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports inductor
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:  # else each new tensor is filled, though none is read before it is written
        torch.utils.deterministic.fill_uninitialized_memory = False


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA's products and convolutions of float32 may round their factors to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


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
    for norm in batch_norms(model):
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.cpu()


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


def context_is_lost() -> bool:
    """Whether an error has ended CUDA's context: whatever this process asks of it will fail.

    An illegal access or a failed assertion does that; memory that ran out does not.
    """
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except torch.AcceleratorError:
            return True
    return False


class PeakMemory:
    """What tensors of this process took at most on a CUDA device.

    cuDNN tries the ways to compute a convolution when it first meets its shape, the workspaces of
    all of them among the tensors: `settle` forgets what was before, once.
    """

    def __init__(self, device: torch.device):
        self.device, self.settled = device, False
        self._reset()

    def settle(self) -> None:
        if not self.settled:
            self._reset()
        self.settled = True

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def bytes(self) -> int | None:
        """None where it is not CUDA."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


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
    """What the timings of a run depend on: device, processor and its threads.

    Of a GPU also the processor that starts its work, with the cores that programs share there, and
    how many runs share the GPU.
    """
    name = platform.processor() or platform.machine()
    name = torch.cpu.get_capabilities().get("cpu_name", name)
    known = {"device": device.type, "device_name": name, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        known |= {"device_name": torch.cuda.get_device_name(device), "processor": name}
        known |= {"cores": psutil.cpu_count(), "per_gpu": int(os.environ.get(PER_GPU, "1"))}
    return known
