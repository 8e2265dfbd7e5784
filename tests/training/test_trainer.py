import numpy as np
import pytest
import torch
from PIL import Image

from sdnet.config import values
from sdnet.config.errors import ConfigError
from sdnet.launch.build import build_trainer, check_batches
from sdnet.runs.folder import RunFolder
from sdnet.training.counters import Diverged, Interrupted
from sdnet.training.listener import Listener
from tests.config.composed import composed
from tests.training.steps import with_group_norm

SMALL = ["model.depth=8", "trainer.epochs=2", "dataset.size=8"]
TIMES = ("train_seconds", "eval_seconds", "images_per_second")


def make(folder, *overrides, device="cpu"):
    config = composed(*SMALL, *overrides, f"trainer.device={device}")
    run = RunFolder(folder)
    if not folder.exists():
        run.create(config, {})
    return build_trainer(config, run)


class StopAfter(Listener):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):  # once it was agreed whether this step is the last
        trainer.stop_requested = trainer.counters.step == self.step - 1


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.skipped_update=freeze", "trainer.channels_last=false"],
        ["model.granularity=sample", "model.rescale=train", "dataset.shift=1", "dataset.flip=true"],
        ["model.granularity=subset", "trainer.accumulate=3"],
        ["optimizer=adamw", "lr_schedule=cosine", "trainer.eval_every=4", "trainer.eval_unit=step"],
    ],
    ids=" ".join,
)
def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_exactly(tmp_path, overrides):
    whole = make(tmp_path / "whole", *overrides)
    whole.fit()

    stopped = make(tmp_path / "parts", *overrides)
    stopped.listeners = (StopAfter(17),)
    with pytest.raises(Interrupted, match="after step 17 of 22"):
        stopped.fit()
    # as if killed after a row was written, before its checkpoint was
    stopped.run.append_row(whole.run.rows()[-1])
    with torch.random.fork_rng():
        torch.manual_seed(99)  # no generator's state takes part
        resumed = make(tmp_path / "parts", *overrides)
    resumed.resume()
    assert resumed.counters.step == 17
    resumed.fit()

    assert without_times(resumed.run.rows()) == without_times(whole.run.rows())
    for a, b in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert resumed.counters.active == whole.counters.active


def test_a_run_on_streamed_images_resumes_in_the_middle_of_an_epoch(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 4)):
        for i in range(count):
            path = tmp_path / "data" / part / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)
    data = ["dataset=image_stream", f"dataset.root={tmp_path / 'data'}", "dataset.resize=9"]
    data += ["trainer.batch_size=6"]
    whole = make(tmp_path / "whole", *data, "trainer.workers=0")
    whole.fit()
    stopped = make(tmp_path / "parts", *data, "trainer.workers=1")
    stopped.listeners = (StopAfter(6),)
    with pytest.raises(Interrupted, match="after step 6 of 8"):
        stopped.fit()
    resumed = make(tmp_path / "parts", *data, "trainer.workers=2")
    resumed.resume()
    resumed.fit()
    assert without_times(resumed.run.rows()) == without_times(whole.run.rows())
    assert resumed.run.rows()[-1]["test_top5_error"] is None  # of two classes


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    whole = make(tmp_path / "whole")
    whole.fit()
    killed = make(tmp_path / "killed")
    killed.run.append_row(whole.run.rows()[0])  # written, but the checkpoint after it was not
    killed.resume()
    killed.fit()
    assert without_times(killed.run.rows()) == without_times(whole.run.rows())


def test_rows_hold_what_was_measured(tmp_path):
    trainer = make(tmp_path / "run", "schedule=constant", "dataset.validation=0")
    trainer.fit()
    rows = trainer.run.rows()
    assert [row["step"] for row in rows] == [12, 24] and [row["epoch"] for row in rows] == [1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.01])
    assert all(row["val_error"] is None and row["active_blocks"] == 3 for row in rows)
    result = trainer.result()
    assert result["best_epoch"] == 2 and "no validation" in result["selection"]
    assert result["test_error"] == result["final_test_error"] == rows[-1]["test_error"]
    assert result["mean_active_blocks"] == result["expected_active_blocks"] == 3
    assert result["seconds_per_epoch"] == pytest.approx(result["train_seconds"] / 2)


def test_the_first_rows_loss_and_error_are_means_over_the_images_of_plain_steps(tmp_path):
    trainer = make(
        tmp_path / "run", "schedule=constant", "trainer.epochs=1", "lr_schedule=constant"
    )
    trainer.fit()
    twin = make(tmp_path / "twin", "schedule=constant", "trainer.epochs=1")
    loss_sum = wrong = count = 0
    optimizer = torch.optim.SGD(
        twin.model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    for images, labels in twin.loaders["train"].batches(0):
        logits = twin.model.train()(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        wrong += int((logits.argmax(1) != labels).sum())
        count += len(labels)
    row = trainer.run.rows()[0]
    assert row["train_loss"] == pytest.approx(loss_sum / count, rel=1e-6)
    assert row["train_error"] == pytest.approx(100 * wrong / count)
    for a, b in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_measured_active_blocks_are_the_gates_that_were_open(tmp_path):
    trainer = make(tmp_path / "run", "schedule=uniform", "schedule.p_L=0.4")
    trainer.fit()
    drawn = [int(trainer.gates.draw(step, 128).sum()) for step in range(22)]
    assert trainer.counters.active == sum(drawn)
    assert trainer.run.rows()[1]["active_blocks"] == pytest.approx(sum(drawn[11:]) / 11)


def test_a_schedule_may_change_with_progress(tmp_path):
    trainer = make(tmp_path / "run")
    seen = []

    def schedule(stage_blocks, progress=1.0):
        assert stage_blocks == (1, 1, 1)
        seen.append(progress)
        return [1.0 - progress / 2] * 3

    trainer.schedule = schedule
    trainer.fit()
    assert seen == pytest.approx([step / 22 for step in range(22)])
    assert trainer.model.blocks[0].survival == pytest.approx(1 - 21 / 44)
    assert trainer.result()["expected_active_blocks"] == pytest.approx(2.25)  # on average


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_step_in_parts_under_one_draw_of_gates_equals_a_whole_one(tmp_path, granularity):
    states = []
    for parts in (1, 3):
        small = ["trainer.epochs=1", f"trainer.accumulate={parts}"]
        trainer = make(tmp_path / f"{parts}", *small, f"model.granularity={granularity}")
        with_group_norm(trainer.model)  # which does not see how a mini-batch is divided
        trainer.model.register_forward_pre_hook(lambda _, images: images[0].double())
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.1)
        for images, labels in trainer.loaders["train"].batches(0):
            assert len(trainer.part_sizes(len(images))[0]) <= parts
            trainer.train_step(images, labels)
        states.append(trainer.model.state_dict() | {"sums": trainer.sums})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-6, atol=1e-9)


def test_recomputed_activations_change_nothing_on_record(tmp_path):
    kept, recomputed = make(tmp_path / "kept"), make(tmp_path / "r", "trainer.checkpoint_blocks=2")
    for trainer in (kept, recomputed):
        trainer.fit()
    assert without_times(kept.run.rows()) == without_times(recomputed.run.rows())


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("trainer.batch_size=5 trainer.accumulate=3", "batch_size must be 6 or more for"),
        ("trainer.sync_batchnorm=true", "sync_batchnorm must be false without CUDA"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=f"trainer.{message}"):
        make(tmp_path / "run", *overrides.split())


def test_a_last_mini_batch_too_small_for_the_processes_is_refused():
    config = {"trainer": {"batch_size": 128, "accumulate": 1}}
    check_batches(config, 1_281_167, 15)  # 15 are left: one for each
    with pytest.raises(ConfigError, match="batch_size=128 leaves 15 of 1281167 training images"):
        check_batches(config, 1_281_167, 16)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(Diverged, match="the training loss is"):
        make(tmp_path / "run", "optimizer.lr=1e30").fit()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_cuda_trains_like_the_cpu(tmp_path, precision):
    from sdnet.training import device as devices

    overrides = ["trainer.epochs=4", f"trainer.precision={precision}"]
    device = devices.resolve("cuda")
    devices.configure(device, precision, None, False)
    trainer = make(tmp_path / "cuda", *overrides, device="cuda")
    trainer.fit()
    assert trainer.result()["peak_memory_bytes"] > 0
    cpu = make(tmp_path / "cpu", "trainer.epochs=4")
    cpu.fit()
    rows, reference = trainer.run.rows(), cpu.run.rows()
    assert [r["active_blocks"] for r in rows] == [r["active_blocks"] for r in reference]
    for row, other in zip(rows, reference, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)


def test_a_device_that_is_not_there_and_tf32_on_cpu_are_refused():
    from sdnet.training import device as devices

    with pytest.raises(ValueError, match="device cuda:99 is not there"):
        devices.resolve("cuda:99")
    with pytest.raises(ValueError, match="precision tf32 needs a CUDA device"):
        devices.configure(torch.device("cpu"), "tf32", None, False)
    assert values.CHECKS["trainer.device"][0]("cuda:1")
