"""BatchNorm, ReLU and the residual sum as one operation, for training on a CPU.

torch computes them one after the other, each with a pass or more over the activations, and the
passes over memory are what takes the time. `fused.cpp` makes two forward and two back, where torch
makes four (five with the sum) and three. Off until `enable` compiles and loads it; where it is off
or does not apply, the functions here are torch's operations.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
DTYPES = {torch.float32: "float", torch.bfloat16: "BFloat16"}

_kernels: dict[torch.dtype, tuple[Callable, Callable]] = {}  # forward, backward; none while off


def enable() -> None:
    """Has `norm_relu` and `norm_add_relu` use the kernels from now on, in all of this process.

    The first time on a machine they are compiled, by `c++` or what the environment variable CXX
    names, which takes two seconds; the library is kept in `sdnet` in the user's cache folder
    (XDG_CACHE_HOME, else ~/.cache).

    Raises:
        RuntimeError: that fails, and why.
    """
    if _kernels:
        return
    try:
        # OpenMP comes from the very library that torch has loaded: the same threads, no others.
        library = ctypes.CDLL(str(_compiled()))
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        raise RuntimeError(f"{error.cmd[0]} failed: {' '.join(lines[:1])}") from error
    except OSError as error:
        raise RuntimeError(str(error)) from error
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    for dtype, name in DTYPES.items():
        forward = getattr(library, f"forward_{name}")
        forward.argtypes = [pointer] * 9 + [integer] * 2 + [real] * 3 + [ctypes.c_int]
        backward = getattr(library, f"backward_{name}")
        backward.argtypes = [pointer] * 11 + [integer] * 2 + [real, ctypes.c_int]
        forward.restype = backward.restype = None
        _kernels[dtype] = forward, backward


def disable() -> None:
    """Has them use torch's operations again."""
    _kernels.clear()


def enabled() -> bool:
    return bool(_kernels)


def _compiled() -> Path:
    """The library for this processor; compiled where it is not in the cache."""
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *FLAGS]
    made_for = (SOURCE.read_text(), command, platform.machine(), torch.cpu.get_capabilities())
    key = hashlib.sha256(repr(made_for).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdnet"
    library = cache / f"fused-{key}.so"
    if not library.exists():
        if shutil.which(command[0]) is None:
            raise RuntimeError(f"there is no C++ compiler {command[0]}; CXX may name another one")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / library.name  # others may be making it too: the last one stays
            command += [str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)
    return library


def norm_relu(bn: nn.Module, x: Tensor) -> Tensor:
    """relu(bn(x)) for x (N, C, H, W), with the effect of `bn(x)` on running statistics.

    With the kernels the result differs from torch's by rounding, and cannot be differentiated
    twice (RuntimeError). They apply to a plain `nn.BatchNorm2d` in training with running
    statistics, without hooks, on float32 or bfloat16 in channels_last on the CPU.
    """
    if _applies(bn, x):
        return _NormRelu.apply(x, bn.weight, bn.bias, None, bn, 1.0)
    out = bn(x)
    return F.relu(out, inplace=out is not x)  # it is x for nn.Identity


def norm_add_relu(bn: nn.Module, x: Tensor, shortcut: Tensor, alpha: float) -> Tensor:
    """relu(shortcut + alpha * bn(x)) for x and shortcut (N, C, H, W); else like `norm_relu`."""
    if _applies(bn, x, shortcut):
        return _NormRelu.apply(x, bn.weight, bn.bias, shortcut, bn, alpha)
    return F.relu(torch.add(shortcut, bn(x), alpha=alpha), inplace=True)


def _applies(bn: nn.Module, *tensors: Tensor) -> bool:
    if not _kernels or torch.compiler.is_compiling() or type(bn) is not nn.BatchNorm2d:
        return False
    if not bn.training or not bn.affine or not bn.track_running_stats or bn.momentum is None:
        return False
    if bn._forward_hooks or bn._forward_pre_hooks or bn._backward_hooks or bn._backward_pre_hooks:
        return False
    x = tensors[0]
    kept = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    return (
        all(type(t) is Tensor and t.shape == x.shape and t.dtype == x.dtype for t in tensors)
        and all(t is not None and t.dtype == torch.float32 and t.is_contiguous() for t in kept)
        and all(t is not None and t.device.type == "cpu" for t in (*tensors, *kept))
        and x.dtype in _kernels
        and x.ndim == 4
        and x.shape[1] == bn.num_features < x.numel()  # two values per channel or more
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
    )


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        bn: Any,
        alpha: float,
    ) -> Tensor:
        bn.num_batches_tracked.add_(1)
        y = torch.empty_like(x)
        moments = torch.empty(2, x.shape[1])  # mean, 1 / standard deviation
        forward, ctx.kernel = _kernels[x.dtype]
        ctx.size = x.numel() // x.shape[1], x.shape[1]  # pixels, channels
        tensors = (x, shortcut, y, weight, bias, *moments, bn.running_mean, bn.running_var)
        _call(forward, tensors, (*ctx.size, bn.eps, bn.momentum, alpha))
        # Without a shortcut the sign of y follows from x.
        ctx.save_for_backward(x, weight, bias, moments, None if shortcut is None else y)
        ctx.alpha = alpha
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, moments, y = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = (torch.empty_like(t) for t in (x, weight, bias))
        dshortcut = None if y is None else torch.empty_like(x)
        tensors = (dy, x, y, dx, dshortcut, weight, bias, *moments, dweight, dbias)
        _call(ctx.kernel, tensors, (*ctx.size, ctx.alpha))
        return dx, dweight, dbias, dshortcut, None, None


def _call(kernel: Callable, tensors: tuple, numbers: tuple) -> None:
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    kernel(*pointers, *numbers, torch.get_num_threads())
