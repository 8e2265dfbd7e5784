from types import SimpleNamespace

import pytest

from sdnet.launch import measure


class Clock:
    """A second for a step, two for a batch of an evaluation."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("evaluate_every, batch_size", [(1, 8), (3, 8), (1, 20)])
def test_the_time_of_a_run_follows_from_a_few_steps(small, monkeypatch, evaluate_every, batch_size):
    clock = Clock()
    overrides = ["trainer.epochs=6", f"trainer.batch_size={batch_size}"]
    trainer = small(*overrides, f"trainer.eval_every={evaluate_every}")
    steps = []

    def train_step(images, labels):
        steps.append(len(images))
        clock.now += 1.0

    def evaluate(model, batches, precision):
        assert len(batches) == 1
        clock.now += 2.0

    trainer.train_step = train_step
    monkeypatch.setattr(measure, "build_trainer", lambda config, run: trainer)
    monkeypatch.setattr(measure, "evaluate", evaluate)
    monkeypatch.setattr(measure, "time", clock)
    seconds = measure.seconds_of({"trainer": {"precision": "fp32"}})
    per_epoch = len(trainer.loaders["train"])
    assert len(steps) == per_epoch  # at most one epoch of so few images
    step = 1.0 if per_epoch > 1 else 3 * 2.0  # of a single step there is none left to time
    batches = len(trainer.loaders["test"]) + len(trainer.loaders["validation"])
    assert seconds == 6 * per_epoch * step + -(-6 // evaluate_every) * batches * 2.0


def test_nothing_is_written(small, tmp_path, monkeypatch):
    trainer = small()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.setattr(measure, "build_trainer", lambda config, run: trainer)
    assert measure.seconds_of({"trainer": {"precision": "fp32"}}) > 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_accelerator_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(measure.torch.cuda, "synchronize", waited.append)
    trainer = SimpleNamespace(device=measure.torch.device("cuda"))
    measure._timed(trainer, lambda: [1])
    assert waited == [trainer.device] * 2
