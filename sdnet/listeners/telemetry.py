"""What happens inside a network while it trains, block by block: `telemetry.csv`.

A row per evaluation and branch, over the steps since the evaluation before; `sdnet.runs.telemetry`
says what of. Gradients are those that the optimizer gets, of the first convolution of a branch, as
in figure 7 of Huang et al. (2016), which shows the first block's.
"""

from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, nn

from sdnet.models.layout import Layout, branch_modules
from sdnet.models.norms import statistics_restored
from sdnet.runs.telemetry import MEASURES, add_telemetry
from sdnet.training.listener import Listener

BATCHES = 8  # of whose gradients the directions are compared


class Telemetry(Listener):
    """Measures at every step, writes at every evaluation.

    Args:
        directions: whether the directions of mini-batches' gradients are compared as well.
    """

    def __init__(self, directions: bool = False):
        self.directions = directions
        self.last: list[dict[str, Any]] = []  # rows
        self.branches: list[list[nn.Parameter]] = []

    def on_start(self, trainer: Any) -> None:
        if not self.branches:
            self._begin(trainer)

    def _begin(self, trainer: Any) -> None:
        model: nn.Module = trainer.model
        self.layout = Layout(model)
        paths = branch_modules(model)
        names = {module: name for name, module in model.named_modules()}
        self.names = [names[gate] for gate in self.layout.gates]
        self.branches = [
            [p for path in paths[gate] for p in model.get_submodule(path).parameters()]
            for gate in self.layout.gates
        ]
        self.first = [next((p for p in b if p.ndim > 1), b[0]) for b in self.branches]
        self._start_interval()

    def _start_interval(self) -> None:
        count = len(self.first)
        self.steps = 0
        self.opened = torch.zeros(count, dtype=torch.float64)  # steps, by the share of images
        self.taken = torch.zeros(count, dtype=torch.float64)  # steps with an image or more
        self.sums = torch.zeros(2, count, device=self.first[0].device)
        self.before = [[p.detach().clone() for p in branch] for branch in self.branches]

    def on_gradients(self, trainer: Any) -> None:
        drawn = trainer.drawn.double()
        share = drawn if drawn.ndim == 1 else drawn.mean(1)
        self.steps += 1
        self.opened += share
        self.taken += share > 0
        known = [i for i, p in enumerate(self.first) if p.grad is not None]
        gradients = [self.first[i].grad for i in known]
        if gradients:
            for row, order in enumerate((1, 2)):
                norms = torch.stack(torch._foreach_norm(gradients, order))
                if len(known) == len(self.first):
                    self.sums[row] += norms
                else:
                    self.sums[row, known] += norms

    def on_row(self, trainer: Any, row: dict[str, float | None]) -> None:
        means, norms = self.sums.double().cpu() / self.taken.clamp(min=1)
        at = {"step": int(row["step"] or 0), "epoch": row["epoch"]}
        self.last = []
        for i, gate in enumerate(self.layout.gates):
            weights, before = self.branches[i], self.before[i]
            moved = torch._foreach_sub([p.detach() for p in weights], before)
            known = bool(self.taken[i])
            self.last.append(
                at
                | {
                    "block": self.layout.block_of[i] + 1,
                    "name": self.names[i],
                    "stage": self.layout.stages[i],
                    "survival": gate.survival,
                    "realised": float(self.opened[i]) / max(self.steps, 1),
                    "gradient_mean": float(means[i]) / self.first[i].numel() if known else None,
                    "gradient_norm": float(norms[i]) if known else None,
                    "weight_norm": norm_of(weights),
                    "update_norm": norm_of(moved),
                }
            )
        if self.directions:
            gradients = gradients_at(trainer, BATCHES)
            found = directions_of(gradients) if len(gradients) > 1 else {}  # an epoch of one batch
            self.last.append(at | {"block": 0, "name": "network"} | found)
        if trainer.run is not None:
            add_telemetry(trainer.run.telemetry, self.last)
        self._start_interval()

    def measures(self) -> dict[str, float]:
        """Of the last rows, for a logger: `telemetry/<measure>/<branch>`."""
        found = {}
        for row in self.last:
            for name in MEASURES:
                if row.get(name) is not None:
                    found[f"telemetry/{name}/{row['name']}"] = row[name]
        return found

    # -- in a checkpoint --------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """Of the interval that has begun."""
        if not self.branches:
            return None
        names = ("steps", "opened", "taken", "sums", "before")
        return {name: getattr(self, name) for name in names}

    def restore(self, trainer: Any, state: dict[str, Any] | None) -> None:
        self._begin(trainer)
        if state is None:  # telemetry was not asked for before
            return
        for name, value in state.items():
            setattr(self, name, value)
        device = self.first[0].device
        self.sums = self.sums.to(device)
        self.before = [[p.to(device) for p in branch] for branch in self.before]
        rows = trainer.run.rows() if trainer.run is not None else []
        if rows and rows[-1]["step"] == trainer.counters.step:  # saved before its row was told
            self.on_row(trainer, rows[-1])


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm([t.detach() for t in tensors])).norm())


def directions_of(gradients: list[Tensor]) -> dict[str, float]:
    """How far the directions of gradients (P,) are from each other.

    `direction_variance` is the mean over pairs of (1 - cosine) / 2, from 0 (all alike) to 1 (Liu et
    al. 2023, "Dropout Reduces Underfitting", equation 1); `alignment` the mean cosine with the mean
    gradient.
    """
    unit = [g / g.norm() for g in gradients]
    pairs = [float((1 - a @ b) / 2) for a, b in combinations(unit, 2)]
    mean = torch.stack(gradients).mean(0)
    return {
        "direction_variance": sum(pairs) / len(pairs),
        "alignment": sum(float(g @ mean / mean.norm()) for g in unit) / len(unit),
    }


def gradients_at(trainer: Any, batches: int) -> list[Tensor]:
    """The gradients (P,) of the next epoch's first mini-batches, each with gates of its own.

    Nothing moves: neither weights nor running statistics, and what is drawn is no step's.
    """
    model, train = trainer.model, trainer.loaders["train"]
    was_training = model.training
    model.train()
    found = []
    epoch = trainer.counters.step // len(train) + 1
    with statistics_restored(model):
        for i, (images, labels) in enumerate(islice(train.batches(epoch), batches)):
            number = trainer.total_steps + trainer.counters.step * batches + i
            size = len(labels)
            sizes = trainer.part_sizes(size)[0]
            gates = trainer.gates.draw(number, sizes)
            trainer.optimizer.zero_grad(set_to_none=True)
            for part in trainer.parts(sizes, images, labels, gates):
                trainer.backward(*part, size)
            given = [p for p in model.parameters() if p.requires_grad]
            flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in given]
            found.append(torch.cat([g.flatten() for g in flat]))
    trainer.optimizer.zero_grad(set_to_none=True)
    model.train(was_training)
    return found
