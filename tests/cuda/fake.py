"""CUDA without a GPU: what the host asks of the device, on tensors that have no values.

Within `cuda()` tensors on the device `cuda` are torch's fake ones: shapes, types and devices are
kept, nothing is computed. Tensors on the CPU are real. Each operation is seen on its way: those
that a device would run are counted, and those for which the host would wait for it. torch itself
refuses one that mixes devices, or whose result has a size that only the device knows. Kernels are
not seen, nor how a real device's gradients lie in memory.
"""

import os
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from itertools import count
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import sdnet

PACKAGE = os.path.dirname(sdnet.__file__) + os.sep
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
NO_LAUNCH = ("aten.empty", "aten.new_empty", "aten.detach", "aten.alias", "aten.lift_fresh")
NO_LAUNCH += ("aten._unsafe_view", "aten._reshape_alias", "aten.as_strided_", "prim.device")

FLAGS = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))
FLAGS += ((torch.backends.cudnn, "benchmark"),)  # which a run sets


class Watch(TorchDispatchMode):
    """Counts operations of the device in `ops`, and in `waits` where the host waits for it."""

    def __init__(self):
        super().__init__()
        self.ops, self.waits = Counter(), Counter()

    def clear(self) -> None:
        self.ops.clear()
        self.waits.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        there = [t for t in tensors if t.device.type == "cuda"]
        if not there and (target is None or target.type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if self.waits_for(func, args, kwargs, tensors, target):
            self.waits[place()] += 1
        if func is aten._local_scalar_dense.default:
            return 1.0 if there[0].is_floating_point() else 1
        if func is aten._to_copy.default and target is not None and target.type == "cpu":
            with unset_fake_temporarily():
                return ones(there[0], dtype=kwargs.get("dtype"))
        if func is aten.copy_.default and args[0].device.type == "cpu":
            with unset_fake_temporarily():
                return args[0].fill_(1)
        if not func.is_view and not str(func).startswith(NO_LAUNCH):
            self.ops[str(func).removeprefix("aten.")] += 1
        return func(*args, **kwargs)

    def waits_for(self, func, args, kwargs, tensors, target) -> bool:
        """Whether the host waits until the device has done all it was asked for."""
        if func is aten._local_scalar_dense.default:
            return True
        if func is aten.index.Tensor or func is aten.index_put_.default:
            return any(i is not None and i.device.type == "cpu" for i in args[1])
        if func not in COPIES:
            return False
        source, goes_to = tensors[-1], tensors[0].device
        if func is aten._to_copy.default:
            goes_to = target or source.device
        if source.device.type == goes_to.type:
            return False
        later = kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,))
        return not (later and getattr(source, "pinned", False) and source.is_contiguous())


def ones(tensor, dtype=None):
    """A real tensor on the CPU in the place of one that has no values."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype)
    return made.fill_(1)


def place() -> str:
    """The file and function of sdnet that is being run."""
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            return f"{code.co_filename.removeprefix(PACKAGE)} {code.co_name}"
        frame = frame.f_back
    return "?"


def backward(loss, ops) -> None:
    """`Tensor.backward`, whose engine in C++ asks the driver for its streams.

    Args:
        ops: what is counted.
    """
    uses, seen, stack = Counter(), {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    gradients = defaultdict(dict)  # by node and number of its output
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = gradients.pop(node, {})
            if hasattr(node, "variable"):
                accumulate(node.variable, given[0])
                continue
            call = getattr(node, "apply", node)  # of a function of ours
            found = call(*[given.get(i) for i in range(len(node._input_metadata))])
            # Called from here this one keeps its input for another time, in a copy.
            ops["clone.default"] -= node.name() == "CudnnBatchNormBackward0"
            found = found if isinstance(found, tuple) else (found,)
            found = found[: len(node.next_functions)]  # no number among its arguments has one
            for (following, number), gradient in zip(node.next_functions, found, strict=True):
                if following is None:
                    continue
                if gradient is not None:
                    like = following._input_metadata[number]
                    if gradient.shape != like.shape:
                        gradient = gradient.sum_to_size(like.shape)
                    slot = gradients[following]
                    slot[number] = slot[number] + gradient if number in slot else gradient
                uses[following] -= 1
                if not uses[following]:
                    ready.append(following)


def accumulate(parameter, gradient) -> None:
    """The first gradient is taken as it is: a real one lies in memory as its parameter does."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    else:
        parameter.grad += gradient


def pin_memory(tensor, device=None):
    """`Tensor.pin_memory`, which needs a driver; `Watch` knows the copy by its mark."""
    pinned = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
    pinned.pinned = True
    return pinned


@contextmanager
def cuda():
    """Within the block the device `cuda` is there; gives the `Watch`."""
    watch, passes, save, load = Watch(), count(), torch.save, torch.load

    def engine(loss):
        number = next(passes)  # by which checkpoints know that they have been computed again
        with mock.patch("torch._C._current_graph_task_id", lambda: number):
            backward(loss, watch.ops)

    def save_values(state, file):
        with unset_fake_temporarily():
            save(tree_map(lambda x: ones(x) if isinstance(x, FakeTensor) else x, state), file)

    def load_values(*args, **kwargs):
        with unset_fake_temporarily():
            return load(*args, **kwargs)

    instead = {
        "torch.Tensor.backward": engine,
        "torch.Tensor.pin_memory": pin_memory,
        "torch._subclasses.FakeTensor.tolist": lambda tensor: tensor.cpu().tolist(),  # one copy
        "torch.save": save_values,
        "torch.load": load_values,
        "torch.optim.optimizer._foreach_supported_types": [torch.Tensor, FakeTensor],
        "torch.cuda.is_available": lambda: False,  # or fake tensors would start the device
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.set_device": lambda device: None,
        "torch.cuda.reset_peak_memory_stats": lambda device=None: None,
        "torch.cuda.max_memory_allocated": lambda device=None: 1,
        "torch.cuda.is_bf16_supported": lambda *args, **kwargs: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        # for DataLoader, which pins memory where this is so
        "torch.accelerator.is_available": lambda: True,
        "torch.accelerator.current_accelerator": lambda *args, **kwargs: None,
    }
    with ExitStack() as stack:
        for owner, name in FLAGS:
            stack.callback(setattr, owner, name, getattr(owner, name))
        for name, value in instead.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(watch)
