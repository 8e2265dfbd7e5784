"""Several processes that train one network: what they exchange, and how they end together.

torchrun, or a submitit job with several tasks, starts the same command once per device. Each
process draws the same gates and takes its share of every mini-batch; the first one, rank 0, alone
has the run folder, the W&B run and the console. It may end at any time for reasons of its own: it
says so in the store that all of them reach, and the others end with it.
"""

import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.utils.store import synchronize

from sdnet import processes
from sdnet.config.errors import ConfigError
from sdnet.data.batches import share
from sdnet.training.device import cuda_index
from sdnet.training.flat import in_memory_order, parts_of

log = logging.getLogger("sdnet")
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0  # for a process to end by itself after rank 0 has
LAST_SECONDS = 600.0  # for rank 0 to conclude a run, once all have computed it
CONCLUDE_SECONDS = 120.0  # for rank 0 to find out that another one failed, and to conclude the run
STARTED, ENDED, ERROR = "sdnet/started", "sdnet/ended", "sdnet/error"
WELL, BADLY = b"well", b"badly"  # how rank 0 has ended
# What gloo and NCCL say of a process that is gone; all else that they say is a fault of this one.
GONE = re.compile(r"gloo\Wtransport|ncclRemoteError")


class Lost(Exception):
    """Another process of the run answers no more."""

    def __init__(self, message: str = "another process of the run is gone"):
        super().__init__(message)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        unreachable = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        if unreachable or GONE.search(str(error)):
            raise Lost from error
        raise


def _all_reduce(
    tensor: Tensor, world: "World", operation: dist.ReduceOp = dist.ReduceOp.SUM
) -> None:
    with _answered():
        if tensor.device.type != "cpu":
            dist.all_reduce(tensor, operation)  # it is queued: the device waits, not this process
            return
        work = dist.all_reduce(tensor, operation, async_op=True)
        while not _is_done(work):
            if world.is_broken():
                raise Lost


def _is_done(work: dist.Work) -> bool:
    """Waits for gloo's answer, but not for long."""
    try:
        return work.wait(timedelta(seconds=POLL_SECONDS))
    except RuntimeError:  # too long, or it failed: then once more, for good
        return work.is_completed() and work.wait()


@dataclass
class World:
    """The processes that work on one run, as one of them sees it; by default it is alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: dist.Store | None = None
    buffer: Tensor | None = None  # of `reduce`

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` rows."""
        return share(count, self.rank, self.size)

    def sum(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all processes."""
        if self.size > 1:
            self.meet()  # gloo finds out at once when one of them is gone, NCCL does not
            _all_reduce(tensor, self)

    def agree(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes; no accelerator is waited for."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        _all_reduce(tensor, self, dist.ReduceOp.MAX)
        return tensor.tolist()

    def broadcast(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """The state that rank 0 gave, with tensors on the CPU."""
        file = io.BytesIO()
        torch.save(state, file)
        sent = [file.getvalue()]
        with _answered():
            dist.broadcast_object_list(sent, device=torch.device("cpu"))
        return torch.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=True)

    def meet(self) -> None:
        """Waits for every process to come here."""
        self.agree(0)

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """One process of each machine before its others: it downloads and caches for them."""
        if self.local_rank > 0:
            self.meet()
        yield
        if self.local_rank == 0:
            self.meet()

    def reduce(self, model: nn.Module, sums: Tensor) -> None:
        """Sums gradients and `sums` over all processes and averages BatchNorm's statistics.

        One message after the backward pass, of what this step computed: the branch of a closed
        block has no gradient, in no process, and is not sent. DistributedDataParallel sends it all
        the same, with find_unused_parameters=True or with zero gradients attached to closed blocks;
        of the three this one cost least in five of six cases of `benchmarks/reduce.py` (two gloo
        processes, small batches) and as much as the others at full ones. It does not overlap with
        the backward pass, which may matter for large networks on slow connections.
        """
        if self.size == 1:
            return
        parameters, norms = parts_of(model)
        # As they lie in memory: flattened otherwise, those in channels_last would be copied twice.
        tensors = [in_memory_order(p.grad, p) for p in parameters if p.grad is not None]
        statistics = [
            tensor
            for m in norms
            if m.weight is None or m.weight.grad is not None  # it took part in this step
            for tensor in (m.running_mean, m.running_var)
        ]
        tensors += [*statistics, sums]
        sizes = [tensor.numel() for tensor in tensors]
        flat = self._buffer(sum(sizes), tensors[0])
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=flat)
        _all_reduce(flat, self)
        parts = flat.split(sizes)
        torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])
        if statistics:
            torch._foreach_div_(statistics, self.size)

    def _buffer(self, size: int, like: Tensor) -> Tensor:
        """Memory that is kept from step to step: new pages would take longer than the message."""
        if self.buffer is None or self.buffer.numel() < size or self.buffer.dtype != like.dtype:
            self.buffer = like.new_empty(size)
        return self.buffer[:size]

    # -- beginning and end ------------------------------------------------------------------------

    def start(self) -> bool:
        """Whether there is something to do: rank 0 calls this when there is, the others to know."""
        if self.size == 1:
            return True
        if self.is_main:
            self.store.set(STARTED, "1")
            return True
        while not self.has_ended():
            if self.store.check([STARTED]):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def has_ended(self) -> bool:
        """Whether rank 0 is done, or gone."""
        try:
            return self.store.check([ENDED])
        except Exception:  # whoever kept the store is gone: rank 0, or torchrun
            return True

    def is_broken(self) -> bool:
        """Whether one of the processes will answer no more, though it may still be there."""
        with suppress(Exception):
            if self.store.check([ERROR]):
                return True
        return self.has_ended()

    def error_elsewhere(self) -> str | None:
        """What another process reported, where one did; its traceback goes to train.log."""
        with suppress(Exception):  # torchrun is gone, which kept the store
            if self.size > 1 and self.store.check([ERROR]):
                text, trace = json.loads(self.store.get(ERROR))
                log.debug("%s\n%s", text, trace)
                return text
        return None

    def fail(self, error: BaseException) -> None:
        """Ends a process other than rank 0, which then finds the reason in the store.

        Returns where submitit waits for a result of each process, once rank 0 has ended.
        """
        text = f"on rank {self.rank}: {type(error).__name__}: {error}"
        try:
            report = json.dumps([text, "".join(traceback.format_exception(error))])
            first = self.store.compare_set(ERROR, "", report).decode() == report
        except Exception:  # rank 0 is gone, which is the reason
            first = False
        if first and not self.has_ended():
            print(f"error {text}", file=sys.__stderr__, flush=True)
        if "SUBMITIT_EXECUTOR" not in os.environ:
            os._exit(1)
        deadline = time.monotonic() + CONCLUDE_SECONDS
        while not self.has_ended():
            if time.monotonic() > deadline:
                os._exit(1)
            time.sleep(POLL_SECONDS)

    def _leave(self, well: bool) -> None:
        """Waits for rank 0 to end; the group is left in order only where all of them do that.

        NCCL waits in `destroy_process_group` for every process to come there. Where one will not,
        the group is kept to the end of this process, which aborts what is under way.
        """
        if self.is_main:
            with suppress(Exception):
                self.store.set(ENDED, WELL if well else BADLY)
        self._wait_for_the_first()
        with suppress(Exception):  # the store is gone, and rank 0 with it
            if well and self.store.get(ENDED) == WELL:
                dist.destroy_process_group()

    def _wait_for_the_first(self) -> None:
        """Until rank 0 has ended: a scheduler may take the end of one for the end of all.

        Where rank 0 was killed it never says so. Then this process ends some time after SIGTERM,
        which torchrun sends, or at last by itself.
        """
        deadline = [time.monotonic() + LAST_SECONDS]

        def hurry(number, frame):
            deadline.append(time.monotonic() + GRACE_SECONDS)

        before = signal.signal(signal.SIGTERM, hurry) if not self.is_main else None
        while not self.has_ended():
            if time.monotonic() > min(deadline):
                os._exit(128 + signal.SIGTERM)
            time.sleep(POLL_SECONDS)
        if before is not None:
            signal.signal(signal.SIGTERM, before)

    def _watch(self, left: threading.Event) -> None:
        """Ends this process where rank 0 has ended and cannot answer what this one waits for."""
        while not left.wait(POLL_SECONDS):
            if self.has_ended() and not left.wait(GRACE_SECONDS):
                os._exit(1)


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the processes of a run, until the end of the block.

    Args:
        device: as `trainer.device`; gradients on CUDA are exchanged by NCCL, all else by gloo.
    """
    rank, size, local_rank = processes.environment()
    if size == 1:
        yield ALONE
        return
    # The optimizer would import it later, and default arguments in there hold on to a group that is
    # there by then: destroying it would close nothing.
    import torch._dynamo

    store, _, _ = next(dist.rendezvous("env://", rank, size))
    common = {"store": store, "rank": rank, "world_size": size}
    if device != "cpu" and torch.cuda.is_available():
        own = _own_device(device, rank, size, local_rank, store)
        # With its device NCCL connects now: what it cannot do is found before the run begins.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=own, **common)
    else:
        dist.init_process_group("gloo", **common)
    world = World(rank, size, local_rank, store)
    left = threading.Event()
    watch = threading.Thread(target=world._watch, args=(left,), daemon=True)
    if not world.is_main:
        watch.start()
    well = False
    try:
        yield world
        well = True
    except processes.Stopped:  # all of them, after the same step
        well = True
        raise
    finally:
        world._leave(well)
        left.set()
        if not world.is_main:
            # A thread that is inside torch, asking the store, when the interpreter ends aborts the
            # process: Python then ends the thread, which C++ does not allow.
            watch.join()


def _own_device(
    name: str, rank: int, size: int, local_rank: int, store: dist.Store
) -> torch.device:
    """The CUDA device of this process, from now on torch's current one.

    Raises:
        ConfigError: in every process, where one of them has none of its own.
    """
    index, identity = cuda_index(local_rank), ""
    if index < torch.cuda.device_count():
        torch.cuda.set_device(index)
        identity = str(torch.cuda.get_device_properties(index).uuid)
    timeout = store.timeout.total_seconds()
    found = synchronize(store, identity.encode(), rank, size, "sdnet/device", timeout)
    for other, device in enumerate(found):
        if not device or device in found[:other]:
            raise ConfigError(
                f"trainer.device={name} needs a CUDA device for each process, and rank {other} of "
                f"{size} has none of its own: start as many on a machine as it has devices, or "
                f"set trainer.device=cpu"
            )
    return torch.device("cuda", index)
