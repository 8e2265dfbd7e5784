"""Two processes exchange the same messages in the same order: else NCCL would wait for ever.

They run here one after the other, in a group that answers at once and exchanges nothing.
"""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdnet.launch import build
from sdnet.training.distributed import World
from tests.small import data, small  # noqa: F401

SMALL = ["trainer.batch_size=9", "trainer.epochs=1"]  # 4 and 5 images, 4 and 5, 1 and 1
PARTS = ["trainer.accumulate=2", "trainer.checkpoint_blocks=2"]


class Messages(TorchDispatchMode):
    """Notes every collective operation, with the shape and the type of what it sends."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
            self.seen.append((str(func), *((t.shape, t.dtype, t.device) for t in tensors)))
        if func is torch.ops.c10d._allgather_base_.default:
            args = (args[0].view(-1), *args[1:])  # as the group takes it, unlike NCCL
        return func(*args, **(kwargs or {}))


@pytest.fixture
def messages_of(small):  # noqa: F811
    """What a process sends in an epoch of three steps and its evaluation."""

    def messages_of(rank, *overrides):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        world = World(rank, 2, rank, dist.HashStore())
        try:
            with Messages() as messages:
                small(*SMALL, *overrides, folder="run", world=world).fit()
        finally:
            dist.destroy_process_group()
        return messages.seen

    return messages_of


@pytest.mark.parametrize("parts", [[], PARTS], ids=["whole", "parts"])
@pytest.mark.parametrize("granularity", ["batch", "sample", "subset"])
def test_processes_send_the_same_messages_in_the_same_order(messages_of, granularity, parts):
    first, second = (messages_of(r, f"model.granularity={granularity}", *parts) for r in range(2))
    assert first == second
    sums = [shape for _, (shape, *_), *_ in first if shape.numel() > 1000]
    assert len(sums) == 3  # one a step, of gradients


@pytest.fixture
def sync_batch_norm_on_the_cpu(monkeypatch):
    """torch's SyncBatchNorm where its kernels, which only CUDA has, give the shapes they give."""

    def of_channels(count):
        return lambda x, *_: tuple(x.new_zeros(x.shape[1]) for _ in range(count))

    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "cpu")
    supported = lambda: [torch.bfloat16]  # noqa: E731
    monkeypatch.setattr(torch.cpu, "get_amp_supported_dtype", supported, raising=False)
    monkeypatch.setattr(torch, "batch_norm_stats", of_channels(2))
    monkeypatch.setattr(torch, "batch_norm_gather_stats_with_counts", of_channels(2))
    monkeypatch.setattr(torch, "batch_norm_elemt", lambda x, *_: x.clone())
    monkeypatch.setattr(torch, "batch_norm_backward_reduce", of_channels(4))
    monkeypatch.setattr(torch, "batch_norm_backward_elemt", lambda gradient, *_: gradient.clone())
    monkeypatch.setattr(build, "build_device", lambda config, world: torch.device("cpu"))


@pytest.mark.parametrize("parts", [[], PARTS], ids=["whole", "parts"])
def test_they_do_where_batch_normalisation_is_synchronised(
    messages_of, sync_batch_norm_on_the_cpu, parts
):
    first, second = (messages_of(r, "trainer.sync_batchnorm=true", *parts) for r in range(2))
    assert first == second
    names = [name for name, *_ in first]
    assert sum("gather" in name for name in names) > 3  # the first layer alone has one a step
