"""The device a run computes on and the precision it computes in."""

import logging
import os
import platform
from typing import Any

import psutil
import torch

log = logging.getLogger(__name__)
DEFAULT_THREADS = torch.get_num_threads()  # a run before this one, in the same sweep, may change it


def resolve(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:<n>`.

    Raises:
        ValueError: a CUDA device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
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
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports inductor
        torch.use_deterministic_algorithms(deterministic)


class OtherLoad:
    """Processor time that other processes of this machine take: with it timings differ."""

    def start(self) -> float:
        """Starts anew; returns the seconds since the last start, 0 at the first."""
        times, own = psutil.cpu_times(), os.times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user
        busy -= getattr(times, "steal", 0.0)
        now = busy - own.user - own.system
        before, self.now = getattr(self, "now", now), now
        return max(now - before, 0.0)


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
