"""Single steps of a trainer against stochastic gradient descent written out by hand."""

from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdnet import set_gates
from sdnet.training.counters import Interrupted
from sdnet.training.distributed import World
from sdnet.training.listener import Listener


@dataclass
class Half(World):
    """One of two processes, as if the other found the same; notes what it exchanges."""

    size: int = 2
    reduced: list = field(default_factory=list)
    wishes: tuple = (False, 0)  # of the other process
    sent: list = field(default_factory=list)
    met: int = 0

    def reduce(self, model, sums):
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.reduced.append((deepcopy(gradients), sums.clone()))
        for tensor in (*gradients.values(), sums):
            tensor.mul_(2)

    def sum(self, tensor):
        tensor.mul_(2)

    def agree(self, *numbers):
        return [max(pair) for pair in zip(numbers, self.wishes, strict=True)]

    def meet(self):
        self.met += 1

    def broadcast(self, state):
        if state is not None:
            self.sent.append(deepcopy(state))
        return self.sent[-1]


class BySGD:
    """A copy of a trainer's network that moves by SGD with Nesterov momentum, written out."""

    def __init__(self, trainer):
        self.model = deepcopy(trainer.model).train()
        self.momentum = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        self.sums = torch.zeros(2, dtype=torch.float64)

    def step(self, images, labels, gates, rate, decay):
        set_gates(self.model, gates)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        named = dict(self.model.named_parameters())
        gradients = torch.autograd.grad(loss, named.values(), allow_unused=True)
        found = zip(named, gradients, strict=True)
        self.move(rate, {name: g for name, g in found if g is not None}, decay)
        wrong = (logits.argmax(1) != labels).sum()
        self.sums += torch.stack([loss.detach().double() * len(labels), wrong])

    @torch.no_grad()
    def move(self, rate, gradients, decay=True):
        for name, p in self.model.named_parameters():
            if name in gradients or decay:
                gradient = gradients.get(name, torch.zeros_like(p)) + 0.01 * p
                self.momentum[name] = 0.8 * self.momentum[name] + gradient
                p -= rate * (gradient + 0.8 * self.momentum[name])


SGD = ["optimizer.lr=0.05", "optimizer.momentum=0.8", "optimizer.weight_decay=0.01"]


@pytest.mark.parametrize("update", ["decay", "freeze"])
def test_steps_with_closed_gates_move_the_network_as_sgd_by_hand_does(small, uniform, update):
    trainer = small(*SGD, f"optimizer.skipped_update={update}", "seed=5")
    twin, seen, stages = BySGD(trainer), [], []
    trainer.lr_schedule = lambda *at: seen.append(at) or 1 / (1 + len(seen))
    constant = trainer.schedule
    trainer.schedule = lambda *given: stages.append(given) or constant(*given)
    trainer.model.train()
    step = skipped = 0
    for epoch in range(2):
        for images, labels in trainer.loaders["train"].batches(epoch):
            gates = uniform(5, step, (3, 1))[:, 0] < 0.5
            rate = 0.05 / (2 + step)
            trainer.train_step(images, labels)
            twin.step(images, labels, gates, rate, update == "decay")
            for name, value in twin.model.state_dict().items():
                torch.testing.assert_close(trainer.model.state_dict()[name], value)
            skipped += 3 - gates.sum()
            assert trainer.lr == pytest.approx(rate, rel=1e-12)
            step += 1
    torch.testing.assert_close(trainer.sums, twin.sums, rtol=1e-6, atol=0)
    assert 3 < skipped < 15
    assert seen == [(pytest.approx(i / 3), 2) for i in range(6)]
    assert stages == [((1, 1, 1), pytest.approx(i / 6)) for i in range(6)]


def test_a_network_whose_schedule_never_changes_is_left_alone(small):
    trainer = small()
    ((images, labels), *_) = trainer.loaders["train"].batches()
    trainer.train_step(images, labels)
    trainer.model.blocks[1].survival = 0.25
    trainer.train_step(images, labels)
    assert [block.survival for block in trainer.model.blocks] == [0.5, 0.25, 0.5]


def open_rows(uniform, granularity):
    """The gates (3, n) of one part in the hand of the docs: a subset has max(1, round(n / 2))."""
    if granularity == "sample":
        return uniform < 0.5
    count = max(1, round(uniform.shape[1] / 2))
    return uniform <= np.sort(uniform, axis=1)[:, count - 1 : count]


def columns_of(values, sizes):
    return np.split(values, np.cumsum(sizes)[:-1], axis=1)


@pytest.mark.parametrize("granularity", ["batch", "sample", "subset"])
def test_a_process_takes_its_share_of_images_and_gates_in_parts_and_moves_by_what_all_found(
    small, uniform, granularity
):
    settings = [*SGD, "trainer.batch_size=9", "trainer.accumulate=2", "seed=7"]
    settings += [f"model.granularity={granularity}"]
    trainer = small(*settings, world=Half(rank=1))
    assert trainer.run is None
    twin, model, world = BySGD(trainer), trainer.model.train(), trainer.world
    seen, dealt, active = [], [], 0
    model.register_forward_pre_hook(
        lambda _, x: seen.append((x[0], [b.gate for b in model.blocks]))
    )
    for step, (images, labels) in enumerate(trainer.loaders["train"].batches()):
        size, others, ours = (9, [2, 2], [3, 2]) if step < 2 else (2, [1], [1])
        assert len(images) == sum(ours)
        trainer.train_step(images, labels)
        columns = uniform(7, step, (3, 1 if granularity == "batch" else size))
        if granularity == "batch":
            gates = columns[:, 0] < 0.5
            active += gates.sum()
            dealt += [gates.tolist()] * len(ours)
        else:
            gates = [open_rows(u, granularity) for u in columns_of(columns, others + ours)]
            active += np.concatenate(gates, axis=1).mean(1).sum()
            gates = gates[len(others) :]
            dealt += gates
        twin.model.zero_grad()
        expected = torch.zeros(2, dtype=torch.float64)
        for i, (part, own) in enumerate(zip(images.split(ours), labels.split(ours), strict=True)):
            set_gates(twin.model, gates if granularity == "batch" else gates[i])
            logits = twin.model(part)
            loss = F.cross_entropy(logits, own, reduction="sum")
            (loss / size).backward()
            expected += torch.stack([loss.detach(), (logits.argmax(1) != own).sum()])
        gradients, sums = world.reduced[-1]
        named = dict(twin.model.named_parameters())
        assert gradients.keys() == {name for name, p in named.items() if p.grad is not None}
        near = {"rtol": 1e-4, "atol": 1e-6}
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, named[name].grad, **near)
        torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=0)
        twin.move(0.05, {name: 2 * gradient for name, gradient in gradients.items()})
        twin.sums += 2 * expected
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, named[name], **near)
    assert [len(part) for part, _ in seen] == [3, 2, 3, 2, 1]
    for (part, gates), expected in zip(seen, dealt, strict=True):
        for gate, wanted in zip(gates, expected, strict=True):
            if granularity == "subset":
                assert gate.of == len(part) and gate.rows.tolist() == wanted.nonzero()[0].tolist()
            else:
                assert np.array_equal(gate, wanted)
    counters = trainer.counters
    assert (counters.images, counters.step, counters.interval_steps) == (20, 3, 3)
    assert counters.active == counters.interval_active == pytest.approx(active, rel=1e-12)
    torch.testing.assert_close(trainer.sums, twin.sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "size", "expected"),
    [
        (8, 1, 8, [[8]]),
        (8, 3, 8, [[3, 3, 2]]),
        (8, 3, 4, [[2, 2]]),
        (8, 3, 3, [[3]]),
        (8, 4, 5, [[3, 2]]),
        (8, 4, 1, [[1]]),
        (13, 2, 13, [[3, 3], [4, 3]]),
        (13, 2, 5, [[2], [3]]),
        (12, 3, 11, [[3, 2], [3, 3]]),
        (20, 2, 11, [[3, 2], [3, 3]]),
        (12, 1, 7, [[2], [2], [3]]),
    ],
)
def test_parts_are_as_many_in_each_process_and_of_two_images_or_more(
    small, batch_size, accumulate, size, expected
):
    trainer = small()
    trainer.settings = {"batch_size": batch_size, "accumulate": accumulate}
    for rank in range(len(expected)):
        trainer.world = World(rank, len(expected))
        assert trainer.part_sizes(size) == expected


def test_a_process_without_a_run_folder_trains_all_the_same_and_stops_when_another_is_asked_to(
    small,
):
    trainer = small(world=Half(rank=1))
    rows, told = [], Listener()
    told.on_row = lambda _, row: rows.append(row)
    trainer.listeners = (told,)
    trainer.model.eval()
    trainer.save_requested = True
    trainer.fit()
    assert [row["step"] for row in rows] == [3, 6] and trainer.model.training
    stopped = small(world=Half(rank=1))
    stopped.world.wishes = (True, 15)
    with pytest.raises(Interrupted, match=r"^stopped after step 1 of 6$") as error:
        stopped.fit()
    assert error.value.number == 15


def test_all_processes_resume_with_what_the_first_one_has(small):
    first = small(world=Half())
    first.world.wishes = (True, 0)
    with pytest.raises(Interrupted):
        first.fit()
    resumed, other = small(world=Half()), small(world=Half(rank=1))
    resumed.resume()
    (state,) = resumed.world.sent
    other.world.sent = [state]
    other.resume()
    for trainer in (resumed, other):
        assert trainer.counters == first.counters and trainer.counters.step == 1
        assert torch.equal(trainer.sums, first.sums) and first.sums[0] > 0
        weights = trainer.model.state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in first.model.state_dict().items())
        momenta = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
        assert len(momenta) == len(first.optimizer.state) > 0
        for momentum, state in zip(momenta, first.optimizer.state.values(), strict=True):
            assert torch.equal(momentum, state["momentum_buffer"])


def test_bf16_is_what_the_network_computes_in_but_neither_its_weights_nor_its_loss(small):
    trainer = small("trainer.precision=bf16")
    given = {True: [], False: []}  # in training and in evaluation
    trainer.model.register_forward_hook(lambda model, x, y: given[model.training].append(y))
    trainer.fit()
    assert len(given[True]) == 6 and len(given[False]) == 2 * 3
    assert {y.dtype for y in given[True] + given[False]} == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    for epoch, row in enumerate(trainer.run.rows()):
        logits = torch.cat(given[True][3 * epoch : 3 * epoch + 3]).detach().double()
        labels = torch.cat([y for _, y in trainer.loaders["train"].batches(epoch)])
        assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
