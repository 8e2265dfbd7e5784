"""What a run puts on record: rows, summary, checkpoints; evaluation and the clock are stubbed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sdnet.analysis.cost import network_cost
from sdnet.runs.folder import COLUMNS
from sdnet.runs.predictions import step_of
from sdnet.training import trainer as training
from sdnet.training.counters import Diverged, Interrupted
from sdnet.training.device import PeakMemory
from sdnet.training.distributed import World
from sdnet.training.evaluation import Evaluation
from sdnet.training.listener import Listener


class Notes(Listener):
    """Notes what it is told, and what the run folder holds by then."""

    def __init__(self, notes=None, name=""):
        self.notes, self.name = [] if notes is None else notes, name

    def on_start(self, trainer):
        self.notes.append((self.name, "start", trainer.counters.step))

    def on_step(self, trainer):
        self.notes.append((self.name, "step", trainer.counters.step))

    def on_row(self, trainer, row):
        step = trainer.counters.step
        assert row["step"] == step and tuple(row) == COLUMNS
        kept = {k: v if v is None else float(f"{v:.8g}") for k, v in row.items()}
        assert trainer.run.rows()[-1] == kept
        assert trainer.run.load_checkpoint()["counters"]["step"] == step
        self.notes.append((self.name, "row", step))


class Kept(Listener):
    """Keeps the weights of each row, and the checkpoints that are there by then."""

    def __init__(self):
        self.weights, self.best, self.last = [], [], []

    def on_row(self, trainer, row):
        self.weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        self.best.append(trainer.run.load_checkpoint("best"))
        self.last.append(trainer.run.load_checkpoint())


def stub_evaluation(monkeypatch, trainer, validation, test):
    """Has the evaluations find these errors, in their order."""
    errors = {"validation": iter(validation), "test": iter(test)}

    def evaluate(model, batches, precision, add_up, outputs):
        assert model is trainer.model and precision == trainer.settings["precision"]
        assert add_up == trainer.world.sum
        (part,) = (name for name, loader in trainer.loaders.items() if loader is batches)
        error = next(errors[part])
        outputs.rows = torch.zeros(batches.count, 3)
        return Evaluation(error / 10, error, error / 100)

    monkeypatch.setattr(training, "evaluate", evaluate)


def same(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[k], expected[k]) for k in state
    )


def test_the_summary_reports_the_row_of_lowest_validation_error(small, monkeypatch):
    trainer = small("trainer.epochs=3")
    assert trainer.result()["selection"] is trainer.result()["test_error"] is None
    stub_evaluation(monkeypatch, trainer, [3, 1, 2], [5, 6, 7])
    trainer.fit()
    rows = trainer.run.rows()
    for part, errors in (("val", [3, 1, 2]), ("test", [5, 6, 7])):
        assert [row[f"{part}_error"] for row in rows] == errors
        assert [row[f"{part}_loss"] for row in rows] == [error / 10 for error in errors]
        assert [row[f"{part}_top5_error"] for row in rows] == [error / 100 for error in errors]
    result = trainer.result()
    assert (result["best_epoch"], result["val_error"]) == (2, 1)
    assert (result["test_error"], result["test_top5_error"]) == (6, 0.06)
    assert result["final_test_error"] == 7
    assert result["selection"].startswith("lowest validation error")
    assert (result["epochs"], result["steps"]) == (3, 9)
    assert result["peak_memory_bytes"] is None


@pytest.mark.parametrize(
    ("every", "unit", "epochs", "steps"),
    [(1, "epoch", 2, [3, 6]), (2, "epoch", 3, [6, 9]), (4, "step", 3, [4, 8, 9])],
)
def test_evaluation_is_at_every_interval_and_at_the_end(
    small, monkeypatch, every, unit, epochs, steps
):
    settings = f"trainer.eval_every={every} trainer.eval_unit={unit} trainer.epochs={epochs}"
    trainer = small(*settings.split())
    stub_evaluation(monkeypatch, trainer, range(9), range(9))
    trainer.fit()
    rows = trainer.run.rows()
    assert [row["step"] for row in rows] == steps
    assert [row["epoch"] for row in rows] == pytest.approx([step / 3 for step in steps], rel=1e-7)


def test_a_budget_ends_a_run_within_an_epoch_where_it_is_evaluated(small, monkeypatch):
    trainer = small("trainer.budget=2", "model.depth=20", "schedule.p_L=0.7", "lr_schedule=cosine")
    stub_evaluation(monkeypatch, trainer, range(9), range(9))
    computed, backward = [], trainer.backward
    monkeypatch.setattr(
        trainer,
        "backward",
        lambda images, *rest: computed.append(len(images)) or backward(images, *rest),
    )
    trainer.fit()
    assert computed == [8, 8, 4, 8, 8, 4, 8, 8]  # 2.67 epochs of 20
    assert [row["step"] for row in trainer.run.rows()] == [3, 6, 8]
    assert trainer.lr == pytest.approx(0.1 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    result = trainer.result()
    assert (result["epochs"], result["steps"]) == (8 / 3, 8)
    (share,) = {result["training_macs"] / result["macs"] / sum(computed)}
    assert share == pytest.approx(network_cost(trainer.model, (1, 8, 8)).expected_share)
    assert abs(share * sum(computed) / 40 - 1) < 4 / 40  # half a step
    again = small("trainer.budget=2", "model.depth=20", "schedule.p_L=0.7", "lr_schedule=cosine")
    again.resume()
    again.fit()  # nothing is left
    assert again.run.rows() == trainer.run.rows()


@pytest.mark.parametrize(
    ("settings", "forgotten"),
    [
        ("trainer.epochs=1", []),
        ("trainer.epochs=3", [3]),
        ("trainer.epochs=4 trainer.eval_every=2", [6]),
        ("trainer.epochs=3 trainer.eval_every=3", []),  # the run is over
        ("trainer.epochs=3 trainer.eval_every=2 trainer.eval_unit=step", [4]),
    ],
)
def test_the_peak_of_memory_is_of_what_came_once_every_shape_was_met(
    small, monkeypatch, settings, forgotten
):
    trainer = small(*settings.split())
    stub_evaluation(monkeypatch, trainer, range(9), range(9))
    reset = []
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: reset.append(trainer.counters.step)
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + reset[-1])
    trainer.memory = PeakMemory(torch.device("cuda"))
    trainer.fit()
    assert reset == [0, *forgotten]
    assert trainer.result()["peak_memory_bytes"] == 100 + reset[-1]


def test_a_resumed_process_meets_every_shape_anew(small, monkeypatch):
    trainer = small("trainer.epochs=4")
    trainer.counters.step = 4
    settled = []
    trainer.memory.settle = lambda: settled.append(trainer.counters.step)
    trainer.fit()
    assert settled == [9]


def test_validation_and_test_errors_are_of_their_own_images_at_full_depth(small, data):
    trainer = small()
    trainer.fit()
    row = trainer.run.rows()[-1]
    trainer.model.eval()
    for name, split in (("val", data.validation), ("test", data.test)):
        images = torch.from_numpy((split.images - 100.0) / 50).float().permute(0, 3, 1, 2)
        with torch.no_grad():
            logits = trainer.model(images).double().numpy()
        losses = np.log(np.exp(logits).sum(1)) - logits[range(len(split)), split.labels]
        assert row[f"{name}_loss"] == pytest.approx(losses.mean(), rel=1e-5)
        wrong = (logits.argmax(1) != split.labels).mean()
        assert row[f"{name}_error"] == pytest.approx(100 * wrong, rel=1e-7)
        assert row[f"{name}_top5_error"] is None


class Clock:
    """Time that passes only where the test lets it."""

    def __init__(self, monkeypatch, trainer):
        self.now, self.checks = 1000.0, []
        monkeypatch.setattr(training.time, "perf_counter", lambda: self.now)
        trainer.model.register_forward_hook(self.forward)
        self.after(trainer, "check_finite", 8, lambda: self.checks.append(trainer.counters.step))
        self.after(trainer.run, "save_checkpoint", 1000)
        batches = trainer.loaders["train"].batches

        def slow(epoch, start):
            for batch in batches(epoch, start):
                self.now += 1
                yield batch

        trainer.loaders["train"].batches = slow
        # Seconds that others took: before the start, then before each row.
        self.load = [500, 6, 12, 24]
        trainer.load = SimpleNamespace(start=lambda: self.passed(20_000) or self.load.pop(0))

    def passed(self, seconds):
        self.now += seconds

    def forward(self, model, images, logits):
        self.passed(2 if model.training else 100)

    def after(self, owner, name, seconds, also=lambda: None):
        method = getattr(owner, name)

        def call(*arguments):
            method(*arguments)
            self.passed(seconds)
            also()

        setattr(owner, name, call)


class Slow(Listener):
    def __init__(self, clock):
        self.clock = clock

    def on_start(self, trainer):
        self.clock.now += 50_000

    def on_step(self, trainer):
        self.clock.now += 4

    def on_row(self, trainer, row):
        self.clock.now += 10_000


class Losses:
    """The losses and wrong answers of all training images, step by step, by numpy."""

    def __init__(self, trainer):
        self.steps = []
        batches = trainer.loaders["train"].batches
        trainer.loaders["train"].batches = lambda *at: self.noted(batches(*at))
        trainer.model.register_forward_hook(self.forward)

    def noted(self, batches):
        for images, self.labels in batches:
            yield images, self.labels

    def forward(self, model, images, logits):
        if model.training:
            logits, labels = logits.detach().double().numpy(), self.labels.numpy()
            own = logits[range(len(labels)), labels]
            losses = np.log(np.exp(logits).sum(1)) - own
            self.steps.append(np.stack([losses, 100 * (logits.argmax(1) != labels)]))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_rows_are_of_the_steps_since_the_last_one_and_of_the_time_they_took(
    small, uniform, monkeypatch, granularity
):
    settings = ["trainer.eval_unit=step", "trainer.eval_every=2", "seed=3"]
    trainer = small(*settings, "schedule.p_L=0.4", f"model.granularity={granularity}")
    losses, clock = Losses(trainer), Clock(monkeypatch, trainer)
    trainer.listeners = (Slow(clock),)
    trainer.fit()
    sizes = [8, 8, 4, 8, 8, 4]
    shapes = [(3, 1 if granularity == "batch" else size) for size in sizes]
    active = [(uniform(3, i, shape) < 0.4).mean(1).sum() for i, shape in enumerate(shapes)]
    rows = trainer.run.rows()
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["lr"] for row in rows] == [0.1, 0.01, 0.01]
    # A step's data 1, forward 2 and listener 4; and a look at the loss, 8.
    assert [row["train_seconds"] for row in rows] == [22, 44, 66]
    # One batch of validation images and two of test images.
    assert [row["eval_seconds"] for row in rows] == [300, 600, 900]
    rates = [row["images_per_second"] for row in rows]
    assert rates == pytest.approx([16 / 22, 12 / 22, 12 / 22], rel=1e-7)
    for i, row in enumerate(rows):
        loss, error = np.concatenate(losses.steps[2 * i : 2 * i + 2], axis=1).mean(1)
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        assert row["train_error"] == pytest.approx(error, rel=1e-7)
        assert row["active_blocks"] == pytest.approx(np.mean(active[2 * i : 2 * i + 2]), rel=1e-7)
    assert clock.checks == [2, 4, 6]
    counters = trainer.counters
    assert counters.images == counters.interval_steps == counters.interval_seconds == 0
    assert counters.interval_active == 0 and not trainer.sums.any()
    result = trainer.result()
    assert (result["train_seconds"], result["eval_seconds"]) == (66, 900)
    assert result["seconds_per_epoch"] == 33
    assert result["mean_active_blocks"] == pytest.approx(np.mean(active), rel=1e-12)
    assert result["expected_active_blocks"] == pytest.approx(1.2, rel=1e-12)
    assert result["other_load"] == (6 + 12 + 24) / 966


def test_a_run_stopped_between_rows_goes_on_counting_where_it_was(small, monkeypatch):
    trainer = small("trainer.eval_unit=step", "trainer.eval_every=4", "schedule=linear_decay")
    clock = Clock(monkeypatch, trainer)
    assert trainer.training_loss_and_error() == (0.0, 0.0)
    fresh = trainer.result()
    for name in ("seconds_per_epoch", "mean_active_blocks", "other_load", "final_test_error"):
        assert fresh[name] is None
    stop = Listener()
    stop.on_step = stop_at(3)
    trainer.listeners = (stop,)
    with pytest.raises(Interrupted, match=r"^stopped after step 3 of 6$"):
        trainer.fit()
    assert clock.checks == [3]
    result = trainer.result()
    assert (result["epochs"], result["steps"]) == (2, 3)
    assert result["train_seconds"] == result["seconds_per_epoch"] == 3 * 3 + 8
    assert result["blocks"] == 3 and result["expected_active_blocks"] == pytest.approx(2.0)
    # Convolutions 9 (16 + 2 * 16^2 + 16 * 32 + 32^2 + 32 * 64 + 64^2), norms, and the classifier.
    assert result["parameters"] == 9 * 8208 + 2 * (3 * 16 + 2 * 32 + 2 * 64) + 65 * 11
    resumed = small("trainer.eval_unit=step", "trainer.eval_every=4", "schedule=linear_decay")
    Clock(monkeypatch, resumed)
    resumed.resume()
    resumed.fit()
    first, last = resumed.run.rows()
    assert (first["train_seconds"], last["train_seconds"]) == (17 + 11, 17 + 11 + 3 + 3 + 8)
    assert first["images_per_second"] == pytest.approx(28 / 28)
    assert last["images_per_second"] == pytest.approx(12 / 14, rel=1e-7)


def stop_at(step):
    def on_step(trainer):
        trainer.stop_requested = trainer.counters.step == step - 1

    return on_step


def test_listeners_are_told_in_turn_and_of_a_row_once_it_is_kept(small):
    notes = []
    trainer = small("trainer.eval_unit=step", "trainer.eval_every=4")
    trainer.listeners = (Notes(notes, "a"), Notes(notes, "b"))
    trainer.fit()
    told = [("start", 0), *(("step", i) for i in (1, 2, 3, 4)), ("row", 4), ("step", 5)]
    told += [("step", 6), ("row", 6)]
    assert notes == [(name, *event) for event in told for name in "ab"]


def test_listeners_may_wait_for_the_device_once_every_process_has_answered(small):
    class Asked(World):
        def agree(self, *numbers):
            notes.append(("", "agree", trainer.counters.step))
            return list(numbers)

    notes = []
    trainer = small("trainer.epochs=1", "trainer.eval_unit=step", "trainer.eval_every=2")
    trainer.world, trainer.listeners = Asked(), (Notes(notes),)
    trainer.fit()
    told = [(name, step) for _, name, step in notes]
    expected = [("start", 0), *((name, step) for step in (1, 2) for name in ("agree", "step"))]
    assert told == [*expected, ("row", 2), ("agree", 3), ("step", 3), ("row", 3)]


def test_best_is_the_network_of_the_latest_of_the_lowest_validation_errors(small, monkeypatch):
    trainer, kept = small("trainer.epochs=5"), Kept()
    stub_evaluation(monkeypatch, trainer, [3, 1, 2, 1, 4], [1, 2, 3, 4, 5])
    trainer.listeners = (kept,)
    trainer.fit()
    for row, best in enumerate([1, 2, 2, 4, 4]):
        state = kept.best[row]
        assert same(state["model"], kept.weights[best - 1])
        assert state["step"] == 3 * best and state["active"] > 0
        assert state.keys() == {"model", *vars(trainer.counters)}
    assert not same(kept.weights[0], kept.weights[1])


def test_without_validation_images_the_last_network_is_the_best(small, data, monkeypatch):
    data.validation = None
    trainer, kept = small(), Kept()
    stub_evaluation(monkeypatch, trainer, [], [1, 2])
    trainer.listeners = (kept,)
    trainer.fit()
    rows = trainer.run.rows()
    for name in ("val_loss", "val_error", "val_top5_error"):
        assert [row[name] for row in rows] == [None, None]
    assert trainer.result()["test_error"] == 2 and trainer.result()["val_error"] is None
    assert [state["step"] for state in kept.best] == [3, 6]


def test_a_resumed_run_has_the_best_network_of_what_it_resumes(small, monkeypatch):
    trainer, kept = small("trainer.epochs=3"), Kept()
    stub_evaluation(monkeypatch, trainer, [3, 4, 1], [5, 6, 7])
    trainer.listeners = (kept,)
    trainer.fit()
    monkeypatch.undo()
    run = trainer.run
    # Rows that the last and the best checkpoint are of, and what the best one is of thereafter.
    for last, best, expected in [(3, 1, 3), (2, 1, 1), (2, 3, None), (1, 3, 1)]:
        run.save_checkpoint(kept.last[last - 1])
        run.save_checkpoint(kept.best[best - 1], "best")
        resumed = small("trainer.epochs=3")
        resumed.resume()
        assert [row["test_error"] for row in run.rows()] == [5, 6, 7][:last]
        assert resumed.counters.step == 3 * last
        assert same(resumed.model.state_dict(), kept.weights[last - 1])
        state = run.load_checkpoint("best")
        if expected is None:
            assert state is step_of(run.predictions) is None
        elif expected == last:
            assert step_of(run.predictions) == 3 * last
        if expected is not None:
            assert state["step"] == 3 * expected
            assert same(state["model"], kept.weights[expected - 1])


def test_a_new_run_that_is_resumed_begins_at_the_start(small):
    trainer = small()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.resume()
    assert trainer.counters.step == 0 and same(trainer.model.state_dict(), before)
    assert not trainer.run.checkpoint("best").exists() and trainer.run.rows() == []


@pytest.mark.parametrize(
    ("loss", "spoilt", "every", "stop", "found"),
    [
        (float("nan"), 1, 1000, None, 50),
        (float("inf"), 51, 1000, None, 52),
        (float("nan"), 1, 3, None, 3),
        (float("-inf"), 1, 1000, 2, 2),
    ],
)
def test_a_loss_that_is_not_finite_is_found_every_50_steps_and_before_anything_is_kept(
    small, loss, spoilt, every, stop, found
):
    trainer = small("trainer.eval_unit=step", f"trainer.eval_every={every}", "trainer.epochs=26")
    trainer.loaders["train"].batches = lambda epoch, start: [(None, None)] * 2
    trainer.steps_per_epoch, trainer.total_steps = 2, 52

    def step(images, labels):
        trainer.counters.step += 1
        if trainer.counters.step == spoilt:
            trainer.sums[0] = loss
        trainer.stop_requested = trainer.counters.step == stop

    trainer.train_step = step
    with pytest.raises(Diverged, match=f"^the training loss is {loss} at step {found} "):
        trainer.fit()
    assert trainer.run.rows() == [] and trainer.run.load_checkpoint() is None


@pytest.mark.parametrize("unit, every", [("step", 2), ("minute", 2)])
def test_states_are_saved_every_so_many_steps_or_minutes_besides_evaluations(
    small, monkeypatch, unit, every
):
    setting = [f"trainer.checkpoint_unit={unit}", f"trainer.checkpoint_every={every}"]
    trainer = small("trainer.eval_every=2", "trainer.epochs=4", *setting)
    stub_evaluation(monkeypatch, trainer, [1, 1], [1, 1])
    saved = []
    clock = SimpleNamespace(monotonic=lambda: 60.0 * trainer.counters.step, perf_counter=float)
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(trainer.run, "save_checkpoint", lambda state: saved.append(state))
    monkeypatch.setattr(trainer, "record", trainer.save)
    trainer.fit()
    assert [state["counters"]["step"] for state in saved] == [2, 4, 6, 8, 10, 12]


def test_a_stop_or_a_save_that_is_asked_for_is_done_after_the_step(small, monkeypatch):
    trainer = small("trainer.eval_unit=step", "trainer.eval_every=4", "trainer.epochs=3")
    stub_evaluation(monkeypatch, trainer, [1, 1, 2], [1, 1, 1])
    notes = Notes()

    def on_step(_, step=notes.on_step):
        step(trainer)
        trainer.save_requested |= trainer.counters.step == 2
        trainer.stop_requested = trainer.counters.step in (4, 8)
        trainer.stop_signal = 12

    notes.on_step = on_step
    saved, save = [], trainer.run.save_checkpoint

    def save_checkpoint(state, name="last"):
        saved.append((name, trainer.counters.step))
        save(state, name)

    trainer.run.save_checkpoint = save_checkpoint
    trainer.listeners = (notes,)
    with pytest.raises(Interrupted, match=r"^stopped after step 5 of 9$") as stopped:
        trainer.fit()
    assert stopped.value.number == 12
    assert saved == [("last", 2), ("last", 4), ("best", 4), ("last", 5)]
    assert trainer.run.load_checkpoint()["counters"]["step"] == 5
    assert not trainer.save_requested
    trainer.fit()  # asked to stop at its last step, a run is complete
    assert trainer.counters.step == 9 and saved[4:6] == [("last", 8), ("best", 8)]
    told = [event for event in notes.notes if event[1] != "step"]
    assert told == [
        ("", "start", 0),
        ("", "row", 4),
        ("", "start", 5),
        ("", "row", 8),
        ("", "row", 9),
    ]
