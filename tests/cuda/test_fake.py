"""What the host asks of a CUDA device in a run, and where it waits; no GPU is needed."""

from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from sdnet import resnet_cifar
from sdnet.data.sources import image_stream
from sdnet.data.splits import Normalization
from sdnet.data.streaming import StreamingLoader
from sdnet.runs.folder import RunFolder
from sdnet.training.distributed import World
from tests.cuda.counts import counts, maker

NETWORKS = {
    "basic": ["model.depth=8"],
    "bottleneck": ["model.depth=11", "model.block=bottleneck"],
    "imagenet": ["model=resnet_imagenet", "model.depth=18"],
    "tiny": ["model=tiny_resnet", "model.blocks=[1,1,1]", "schedule=uniform"],
}
CASES = """
basic      batch  post fp32 sgd   1 null
basic      sample pre  bf16 adamw 2 null
basic      subset post tf32 sgd   1 2
bottleneck batch  pre  tf32 adamw 2 1
bottleneck sample post fp32 sgd   1 null
bottleneck subset pre  bf16 sgd   2 null
imagenet   batch  post bf16 adamw 1 2
imagenet   sample pre  tf32 sgd   1 null
imagenet   subset post fp32 sgd   2 null
tiny       batch  pre  bf16 sgd   2 null
tiny       sample post tf32 adamw 1 1
tiny       subset pre  fp32 adamw 1 null
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_a_run_waits_for_the_device_only_where_it_reads_results(tmp_path, case):
    network, granularity, order, precision, optimizer, accumulate, group = case.split()
    settings = [*NETWORKS[network], f"model.granularity={granularity}", f"model.order={order}"]
    settings += [f"trainer.precision={precision}", f"optimizer={optimizer}"]
    settings += [f"trainer.accumulate={accumulate}", f"trainer.checkpoint_blocks={group}"]
    run = RunFolder(tmp_path / "run")
    with maker() as (make, watch):
        trainer = make(*settings, run=run)
        watch.clear()
        for batch in trainer.loaders["train"].batches():
            trainer.train_step(*batch)
        assert watch.waits == {} and watch.ops.total() > 200
        trainer.counters.interval_seconds = 1.0
        trainer.record()
        of_both = "training/evaluation.py evaluate", "training/evaluation.py predictions"
        waits = dict.fromkeys(of_both, 2)  # of the test's images and the validation's
        assert watch.waits == waits | {"training/trainer.py training_loss_and_error": 1}

        resumed = make(*settings, run=run)
        resumed.resume()
        assert resumed.counters.step == 2
        watch.clear()
        resumed.train_step(*next(resumed.loaders["train"].batches(1)))
        assert watch.waits == {}
        state = resumed.optimizer.state.values()
        tensors = [v for values in state for v in values.values() if isinstance(v, torch.Tensor)]
        assert len(tensors) > 20 and {t.device.type for t in tensors if t.ndim} == {"cuda"}


@pytest.mark.parametrize(
    "precision, most",
    [
        ("fp32", {"open block": 14, "closed block": 0, "loader": 31, "rest": 43}),
        ("bf16", {"open block": 18, "closed block": 0, "loader": 31, "rest": 50}),
    ],
)
def test_a_step_asks_no_more_of_the_device(precision, most):
    found = counts(precision)
    assert found.keys() == most.keys() and all(found[name] <= most[name] for name in most), found


def test_what_processes_exchange_is_copied_once_each_way():
    with maker() as (make, watch), mock.patch("torch.distributed.all_reduce") as all_reduce:
        trainer = make("model.depth=8", world=World(0, 2))
        batch, second = trainer.loaders["train"].batches()
        assert len(batch[1]) == 8
        reduce = trainer.world.reduce
        copy = mock.Mock(wraps=torch._foreach_copy_)

        def reduce_alone(*args):
            watch.clear()
            with mock.patch("torch._foreach_copy_", copy):
                reduce(*args)
            assert watch.waits == {} and set(watch.ops.values()) == {1}
            assert watch.ops.keys() == {"cat.out", "_foreach_copy_.default", "_foreach_div_.Scalar"}

        with mock.patch.object(trainer.world, "reduce", reduce_alone):
            trainer.train_step(*batch)
            with mock.patch.object(torch.nn.Module, "named_modules", side_effect=AssertionError):
                trainer.train_step(*second)  # what the network consists of is known by now
        (into, parts), _ = copy.call_args
        # Else torch copies one by one.
        assert [t.stride() for t in into] == [p.stride() for p in parts]
        assert sum(t.ndim == 4 for t in into) >= 4
        assert all_reduce.call_args.args[0].numel() == sum(t.numel() for t in into)


def test_batchnorm_counts_its_batches_as_ever_though_not_on_the_device():
    with maker() as (make, _):
        trainer = make("model.depth=14", "schedule=uniform")
        state = trainer.model.state_dict()
        counts = {name: value for name, value in state.items() if name.endswith("_tracked")}
        for value in counts.values():
            value.zero_()  # what comes from the device has no value
        for batch in trainer.loaders["train"].batches():
            trainer.train_step(*batch)
        opened = sum(trainer.gates.draw(step, 16).int() for step in range(2)).tolist()
    assert state.keys() == resnet_cifar(14).state_dict().keys()
    blocks = [f"layer{i}.{j}.bn{k}" for i in (1, 2, 3) for j in (0, 1) for k in (1, 2)]
    expected = {"bn1": 2} | dict(zip(blocks, np.repeat(opened, 2).tolist(), strict=True))
    assert {name.removesuffix(".num_batches_tracked"): n for name, n in counts.items()} == expected
    assert len(set(opened)) > 1


def test_images_that_are_streamed_are_not_waited_for(tmp_path):
    for part in ("train", "val"):
        for i in range(6):
            path = tmp_path / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24, 3), 40 * i, np.uint8)).save(path)
    images = image_stream(str(tmp_path), size=8, resize=10, color=0.4, lighting=0.1).train
    with maker() as (_, watch):
        fitted = Normalization.fit(images, "imagenet")
        for seed in (0, None):
            loader = StreamingLoader(images, fitted, 4, "cuda", seed=seed, workers=0)
            watch.clear()
            batches = list(loader.batches())
            assert [len(labels) for _, labels in batches] == [4, 2] and watch.waits == {}
            assert {t.device.type for batch in batches for t in batch} == {"cuda"}
            assert watch.ops.total() > 10


def test_what_is_a_wait():
    with maker() as (_, watch):
        there, here = torch.zeros(4, device="cuda"), torch.arange(4)

        def waits(action):
            watch.clear()
            action()
            return watch.waits.total()

        assert waits(lambda: there.sum().item()) == waits(there.tolist) == waits(there.cpu) == 1
        assert waits(lambda: there[here]) == 1
        assert waits(lambda: here.to("cuda")) == 1
        assert waits(lambda: here.to("cuda", non_blocking=True)) == 1  # pageable
        assert waits(lambda: here.pin_memory().to("cuda")) == 1
        assert waits(lambda: here.pin_memory().to("cuda", non_blocking=True)) == 0
        assert waits(lambda: there.copy_(here)) == 1
        assert waits(lambda: (there + 1)[:2].clone()) == 0
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with pytest.raises(DynamicOutputShapeException):
            there[there > 0]
