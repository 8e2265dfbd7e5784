from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdnet.launch.build import build_trainer
from sdnet.listeners import telemetry
from sdnet.listeners.telemetry import Telemetry, directions_of
from sdnet.runs.folder import RunFolder
from sdnet.runs.telemetry import read_telemetry
from sdnet.training.counters import Interrupted
from sdnet.training.listener import Listener
from tests.config.composed import composed

SMALL = ["model.depth=8", "trainer.epochs=2", "dataset.size=8", "trainer.device=cpu"]


def make(folder, *overrides, directions=False, **given):
    config = composed(*SMALL, *overrides)
    run = RunFolder(folder)
    if not folder.exists():
        run.create(config, {})
    trainer = build_trainer(config, run, **given)
    trainer.listeners = (Telemetry(directions),)
    return trainer


class StopAfter(Listener):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.counters.step == self.step - 1


class Twin(Listener):
    """Keeps every step's gradients, and the weights between the rows."""

    def __init__(self):
        self.found, self.weights = [], []

    def on_start(self, trainer):
        self.weights.append(deepcopy(trainer.model))

    def on_gradients(self, trainer):
        blocks = trainer.model.blocks
        self.found.append([b.gate and b.conv1.weight.grad.clone() for b in blocks])

    def on_row(self, trainer, row):
        self.weights.append(deepcopy(trainer.model))


def test_rows_hold_what_the_gradients_and_weights_were(tmp_path):
    trainer, twin = make(tmp_path / "run", "schedule.p_L=0.3"), Twin()
    trainer.listeners += (twin,)
    trainer.fit()
    rows = read_telemetry(trainer.run.telemetry)
    assert [(r["step"], r["block"]) for r in rows] == [
        (step, block) for step in (11, 22) for block in (1, 2, 3)
    ]
    for row in rows:
        first, block = row["step"] - 11, row["block"] - 1
        taken = [g[block] for g in twin.found[first : first + 11] if g[block] is not False]
        assert 0 < len(taken) <= 11 and row["realised"] == pytest.approx(len(taken) / 11)
        means, norms = zip(*((g.abs().mean(), g.norm()) for g in taken), strict=True)
        assert row["gradient_mean"] == pytest.approx(np.mean(means), rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
        before, after = (
            torch.cat([p.flatten() for p in net.blocks[block].parameters()])
            for net in twin.weights[first // 11 : first // 11 + 2]
        )
        assert row["weight_norm"] == pytest.approx(after.norm().item(), rel=1e-4)
        assert row["update_norm"] == pytest.approx((after - before).norm().item(), rel=1e-4)
    assert rows[0]["survival"] > rows[2]["survival"] == 0.3
    sent = trainer.listeners[0].measures()
    assert sent["telemetry/update_norm/layer3.0"] == pytest.approx(rows[-1]["update_norm"])


@pytest.mark.parametrize("granularity", ["batch", "subset"])
@pytest.mark.parametrize("stop", [5, 11], ids=["between", "at an evaluation"])
def test_a_resumed_run_has_the_same_rows_and_they_change_nothing(tmp_path, granularity, stop):
    settings = f"model.granularity={granularity}"
    whole = make(tmp_path / "whole", settings, directions=True)
    whole.fit()
    plain = make(tmp_path / "plain", settings)
    plain.listeners = ()
    plain.fit()
    weights = plain.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in whole.model.state_dict().items())

    parts = make(tmp_path / "parts", settings, directions=True)
    parts.listeners += (StopAfter(stop),)
    with pytest.raises(Interrupted):
        parts.fit()
    if stop == 11:  # killed before the row was told, or after
        parts.run.telemetry.unlink()
    again = make(tmp_path / "parts", settings, directions=True)
    again.resume()
    again.fit()
    assert again.run.telemetry.read_bytes() == whole.run.telemetry.read_bytes()


def test_directions_are_compared_with_each_other_and_with_their_mean(tmp_path):
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    found = directions_of([x, y])
    assert found["direction_variance"] == pytest.approx(0.5)
    assert found["alignment"] == pytest.approx((0.6 + 0.8) / 2)
    assert directions_of([x, 2 * x]) == pytest.approx({"direction_variance": 0, "alignment": 1})

    trainer = make(tmp_path / "run", "schedule=constant", "trainer.accumulate=2", directions=True)
    trainer.resume()
    found = telemetry.gradients_at(trainer, 2)
    model, parts = trainer.model.train(), []
    images, labels = next(trainer.loaders["train"].batches(1))
    for some, theirs in zip(images.chunk(2), labels.chunk(2), strict=True):
        loss = F.cross_entropy(model(some), theirs)
        parts.append(torch.autograd.grad(loss, list(model.parameters())))
    by_hand = torch.cat([((a + b) / 2).flatten() for a, b in zip(*parts, strict=True)])
    torch.testing.assert_close(found[0], by_hand, rtol=1e-4, atol=1e-6)


def test_a_damaged_file_is_set_aside_and_costs_no_training(tmp_path, caplog):
    trainer = make(tmp_path / "run", "trainer.batch_size=2000", directions=True)  # one an epoch
    trainer.run.telemetry.write_text("step,epoch\nx,y,z\n")
    trainer.fit()
    rows = read_telemetry(trainer.run.telemetry)
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
    assert rows[3]["block"] == 0 and rows[3]["alignment"] is None
    assert "it is now telemetry.csv.damaged" in caplog.text


def test_before_it_has_begun_it_has_no_state():
    assert Telemetry().state() is None  # other processes get none
