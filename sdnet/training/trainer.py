"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sdnet.data.batches import part_sizes
from sdnet.data.loader import Loader
from sdnet.models.gates import GateSampler, set_gates, set_survival
from sdnet.models.layout import Layout
from sdnet.runs.folder import RunFolder, select
from sdnet.runs.predictions import write_predictions
from sdnet.training import device as devices
from sdnet.training.counters import Counters, Diverged, Interrupted
from sdnet.training.distributed import ALONE, World
from sdnet.training.divergence import first_not_finite
from sdnet.training.evaluation import Evaluation, Outputs, evaluate
from sdnet.training.listener import Listener
from sdnet.training.optim import factor_of, set_rate, zero_skipped
from sdnet.training.result import result_of

PARTS = {"validation": "val", "test": "test"}  # that are evaluated, and what columns call them
CHECK_EVERY = 50  # steps between looks at the loss, each of which waits for the device


class Trainer:
    """Trains a model on data and records what happens in a run folder.

    Args:
        model: on its device, in its memory format.
        schedule: of the survival of the model's gated blocks; see `sdnet.models.schedules`.
        lr_schedule: called as `lr_schedule(epoch, epochs)`; see `sdnet.training.optim`.
        loaders: `train`, `test` and, where images were set aside, `validation`.
        config: the whole resolved configuration.
        run: where rows and checkpoints go; None in a process that keeps none.
        world: the processes that train this model; each of them has a trainer.
        listeners: told of the start, of each step and of each row; see `Listener`.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Callable[..., Sequence[float]],
        optimizer: Optimizer,
        lr_schedule: Callable[[float, int], float],
        loaders: dict[str, Loader],
        config: dict[str, Any],
        run: RunFolder | None,
        world: World = ALONE,
        listeners: tuple[Listener, ...] = (),
    ):
        self.model = model
        self.schedule = schedule
        self.layout = Layout(model)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.loaders = loaders
        self.settings = config["trainer"]
        self.skipped_update = config["optimizer"]["skipped_update"]
        self.run = run
        self.world = world
        self.listeners = listeners
        self.gates = GateSampler(model, config["seed"])
        self.device = next(model.parameters()).device
        self.steps_per_epoch = len(loaders["train"])
        self.epochs = self.settings["epochs"]
        self.total_steps = round(self.epochs * self.steps_per_epoch)  # the last may end early
        self.eval_steps = self.settings["eval_every"] * (
            self.steps_per_epoch if self.settings["eval_unit"] == "epoch" else 1
        )
        self.facts: dict[str, Any] = {}  # of the data, for the record
        self.classes: list[str] = []  # their names, for what is shown
        self.orders: dict[str, str] = {}  # of the parts, by which predictions are known
        self.outputs: dict[str, Outputs] = {}  # of the last evaluation
        self.macs: dict[str, float] = {}  # multiply-adds, for the result
        self.counters = Counters()
        self.load = devices.OtherLoad()
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, wrong answers
        self.lr = 0.0
        self.drawn: Tensor | None = None  # the gates of the last step
        self.part: Tensor | None = None  # the images of the last forward pass
        self.survival: list[float] | None = None  # that the blocks have by now
        self.stop_requested = False
        self.stop_signal = 0  # that asked for it, if any
        self.save_requested = False
        self.saved = 0.0  # when, by the monotonic clock
        self.memory = devices.PeakMemory(self.device)
        self.recorded: Any = None  # what stands in for both, of `sdnet.models.fast.graphs`

    def fit(self) -> None:
        """Trains from the current step to the last one.

        Raises:
            Interrupted: `stop_requested` was set; the state is saved.
            Diverged: the loss is not finite.
        """
        self.model.train()
        self.saved = time.monotonic()
        self.load.start()
        settled = self.counters.step + self.steps_per_epoch  # all shapes of a batch were met
        for listener in self.listeners:
            listener.on_start(self)
        while self.counters.step < self.total_steps:
            epoch, start = divmod(self.counters.step, self.steps_per_epoch)
            clock = time.perf_counter()
            batches = self.loaders["train"].batches(epoch, start)
            for images, labels in islice(batches, self.total_steps - self.counters.step):
                self.train_step(images, labels)
                step = self.counters.step
                due = step % self.eval_steps == 0 or step == self.total_steps
                stop, number = self.world.agree(self.stop_requested, self.stop_signal)
                for listener in self.listeners:  # they may wait for the device, where others answer
                    listener.on_step(self)
                save = self.save_is_due()
                if due or stop or save or step % CHECK_EVERY == 0:
                    self.check_finite()  # waits for the device
                now = time.perf_counter()
                self.counters.interval_seconds += now - clock
                clock = now
                if due:
                    self.record()
                    if settled <= step < self.total_steps:
                        self.memory.settle()
                    clock = time.perf_counter()
                stop = stop and step < self.total_steps
                if (stop or save) and not due:
                    self.save()
                if stop:
                    raise Interrupted(f"stopped after step {step} of {self.total_steps}", number)

    def save_is_due(self) -> bool:
        """Whether a state is to be saved now, besides those of the evaluations."""
        every = self.settings["checkpoint_every"] or math.inf
        if self.settings["checkpoint_unit"] == "step":
            return self.save_requested or self.counters.step % every == 0
        return self.save_requested or time.monotonic() - self.saved >= 60 * every

    def save(self) -> None:
        """Writes the last checkpoint, where this process keeps them."""
        if self.world.is_main:
            self.run.save_checkpoint(self.state())
        self.save_requested, self.saved = False, time.monotonic()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One step of stochastic gradient descent on one mini-batch with one draw of gates.

        Where several processes share the mini-batch, `images` are those of this one; and they may
        be computed in `accumulate` parts. The gradient is that of the mean loss over all of it.
        """
        counters, world = self.counters, self.world
        epoch = counters.step / self.steps_per_epoch
        self.lr = set_rate(self.optimizer, factor_of(self.lr_schedule, epoch, self.epochs))
        self.set_survival(counters.step / self.total_steps)
        size = self.loaders["train"].size_of(counters.step % self.steps_per_epoch)
        sizes = self.part_sizes(size)
        gates = self.gates.draw(counters.step, [n for parts in sizes for n in parts])
        self.drawn = gates
        mine = gates[:, world.share(size)] if gates.ndim == 2 else gates
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.parts(sizes[world.rank], images, labels, mine)
        sums = [self.backward(*part, size) for part in parts]
        step_sums = torch.stack(sums).sum(0)
        world.reduce(self.model, step_sums)
        loss = step_sums[0].item() if self.device.type == "cpu" else 0.0  # others: every 50 steps
        if not math.isfinite(loss):
            raise self.diverged(loss, counters.step + 1)
        if self.skipped_update == "decay":
            zero_skipped(self.optimizer)
        for listener in self.listeners:
            listener.on_gradients(self)
        (self.recorded or self.optimizer).step()

        self.sums += step_sums
        active = int(gates.sum()) if gates.ndim == 1 else float(gates.double().mean(1).sum())
        counters.step += 1
        counters.images += size
        counters.active += active
        counters.interval_active += active
        counters.interval_steps += 1

    def set_survival(self, progress: float) -> None:
        """Follows the schedule, which may change with the fraction of training done."""
        survival = self.layout.survival(self.schedule, progress)
        if survival != self.survival:  # most schedules never change: leave the blocks alone
            set_survival(self.model, survival)
            self.survival = survival

    def part_sizes(self, size: int) -> list[list[int]]:
        """For each process the images in the parts in which it computes a mini-batch of `size`."""
        settings = self.settings
        return part_sizes(size, settings["batch_size"], settings["accumulate"], self.world.size)

    def parts(self, sizes: list[int], images: Tensor, labels: Tensor, gates: Tensor) -> Iterator:
        """This process's share of a mini-batch in parts of `sizes`, with gates for their rows."""
        parts = (tensor.split(sizes) for tensor in (images, labels))
        rows = gates.split(sizes, dim=1) if gates.ndim == 2 else [gates] * len(sizes)
        return zip(*parts, rows, strict=True)

    def backward(self, images: Tensor, labels: Tensor, gates: Tensor, size: int) -> Tensor:
        """Adds a part's share of the gradient; returns its loss, summed, and its wrong answers."""
        set_gates(self.model, gates, self.gates.modules)
        self.part = images
        with devices.autocast(self.device, self.settings["precision"]):
            logits = (self.recorded or self.model)(images)
        loss = F.cross_entropy(logits.float(), labels)
        (loss * (len(images) / size)).backward()
        with torch.no_grad():
            wrong = (logits.argmax(1) != labels).sum()
            return torch.stack([loss.detach() * len(images), wrong])

    def check_finite(self) -> None:
        loss = self.sums[0].item()
        if not math.isfinite(loss):
            raise self.diverged(loss, self.counters.step)

    def diverged(self, loss: float, step: int, kind: str = "training") -> Diverged:
        """Says where: the step, the rate, and the first block whose numbers are not finite."""
        where = f"epoch {step / self.steps_per_epoch:.2f}, learning rate {self.lr:.3g}"
        found = first_not_finite(self.model, self.part, self.settings["precision"])
        return Diverged(f"the {kind} loss is {loss} at step {step} ({where}): {found}")

    def training_loss_and_error(self) -> tuple[float, float]:
        """Mean loss and error in percent since the last evaluation, while the weights moved."""
        loss, wrong = (self.sums / max(self.counters.images, 1)).tolist()
        return loss, 100.0 * wrong

    def record(self) -> None:
        """Evaluates, adds a row to the metrics and saves a checkpoint."""
        counters = self.counters
        counters.train_seconds += counters.interval_seconds
        train_loss, train_error = self.training_loss_and_error()
        start = time.perf_counter()
        results = self.evaluate()
        counters.eval_seconds += time.perf_counter() - start
        counters.other_seconds += self.load.start()
        row = {
            "epoch": counters.step / self.steps_per_epoch,
            "step": counters.step,
            "lr": self.lr,
            "train_loss": train_loss,
            "train_error": train_error,
            **results,
            "train_seconds": counters.train_seconds,
            "eval_seconds": counters.eval_seconds,
            "images_per_second": counters.images / counters.interval_seconds,
            "active_blocks": counters.interval_active / counters.interval_steps,
        }
        counters.images = counters.interval_steps = counters.interval_active = 0
        counters.interval_seconds = 0.0
        self.sums.zero_()
        if self.world.is_main:
            self.run.append_row(row)
        self.save()
        if self.is_best():
            self.save_best()
        for listener in self.listeners:
            listener.on_row(self, row)

    def evaluate(self) -> dict[str, float | None]:
        """The columns of losses and errors; the logits are kept until the next time."""
        results: dict[str, float | None] = {}
        self.outputs = {part: Outputs(self.loaders[part]) for part in PARTS if part in self.loaders}
        for part, prefix in PARTS.items():
            numbers = dict.fromkeys(Evaluation._fields)
            if part in self.outputs:
                how = self.settings["precision"], self.world.sum, self.outputs[part]
                numbers = evaluate(self.model, self.loaders[part], *how)._asdict()
            if math.isnan(numbers["loss"] or 0.0):  # weights, since the last step
                raise self.diverged(numbers["loss"], self.counters.step, part)
            results |= {f"{prefix}_{name}": value for name, value in numbers.items()}
        return results

    def is_best(self) -> bool:
        """Whether the test error of this step would be reported now."""
        rows = self.run.rows() if self.world.is_main else []
        return bool(rows) and select(rows)[0]["step"] == self.counters.step

    def save_best(self) -> None:
        """Saves the model, and what it said of each image."""
        counters = self.counters
        self.run.save_checkpoint({"model": self.model.state_dict(), **asdict(counters)}, "best")
        parts = {p: o.predictions(self.orders.get(p, "")) for p, o in self.outputs.items()}
        epoch = counters.step / self.steps_per_epoch
        write_predictions(self.run.predictions, parts, epoch, counters.step)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; what is random is keyed by the step."""
        states = {type(listener).__name__: listener.state() for listener in self.listeners}
        known = {name: state for name, state in states.items() if state is not None}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": asdict(self.counters),
            "sums": self.sums,
            "metrics": self.run.metrics(),
        } | ({"listeners": known} if known else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Takes on what `state` gave."""
        self.counters = Counters(**state["counters"])
        if self.counters.step:  # the survival with which it was saved
            self.set_survival((self.counters.step - 1) / self.total_steps)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sums.copy_(state["sums"])

    def resume(self) -> None:
        """Goes back to the run folder's last checkpoint, or to the start where there is none."""
        known = {}
        if self.world.is_main:
            state = self.run.newest() or {}
            known = state.get("listeners", {})
            if state:
                self.restore(state)
            self.run.drop_after(self.counters.step, state.get("metrics"))
        if self.world.size > 1:  # all begin with the very same numbers
            state = self.world.broadcast(self.state() if self.world.is_main else None)
            if not self.world.is_main:
                self.restore(state)
        if self.world.is_main and self.counters.step:
            for listener in self.listeners:
                listener.restore(self, known.get(type(listener).__name__))
        # A process that was killed after `last` had no time for the best.
        late = self.is_best() and not self.run.has_best(self.counters.step)
        if self.world.agree(late, 0)[0]:
            self.evaluate()
            if self.world.is_main:
                self.save_best()

    def result(self) -> dict[str, Any]:
        """The numbers of summary.json, from the rows recorded so far."""
        return result_of(self)
