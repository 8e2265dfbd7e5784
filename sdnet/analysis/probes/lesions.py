"""What a network does without some of its blocks, or with them in another order (Veit et al. 2016).

Nothing is trained again: gates are closed, or blocks swapped, at test time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from sdnet import rng
from sdnet.analysis.probes.subject import Subject
from sdnet.config.errors import ConfigError
from sdnet.models.resnet import ResNet

Row = dict[str, Any]


def lesions(subject: Subject) -> list[Row]:
    """Each branch out in turn: a row for each gate, on validation, where there is one, and test.

    `..._increase` is over full depth.
    """
    parts = [part for part in ("validation", "test") if part in subject.parts]
    full = {part: subject.scores(part) for part in parts}
    rows = []
    for gate in range(len(subject.layout.gates)):
        row = subject.place(gate)
        with subject.without([gate]):
            for part in parts:
                for name, value in subject.scores(part).items():
                    row[f"{part}_{name}"] = value
                    row[f"{part}_{name}_increase"] = value - full[part][name]
        rows.append(row)
    return rows


def lesion_sets(subject: Subject, n: int, seed: int, part: str = "test") -> list[Row]:
    """Random sets of k branches out, k = 0 to L: n different sets each, or all that there are."""
    L = len(subject.layout.gates)
    rows = []
    for k in range(L + 1):
        random = rng.generator(seed, "lesions", k)
        sets: set[tuple[int, ...]] = set()
        while len(sets) < min(n, math.comb(L, k)):
            sets.add(tuple(sorted(random.choice(L, k, replace=False).tolist())))
        for out in sorted(sets):
            with subject.without(out):
                gates = " ".join(str(gate + 1) for gate in out)
                rows.append({"k": k, "gates": gates, **subject.scores(part)})
    return rows


def reorder(subject: Subject, n: int, seed: int, part: str = "test") -> list[Row]:
    """Blocks of equal shape swapped within their stages, k = 0 to L random pairs of them: n times.

    The rank correlation (Kendall's tau) of the order with that of training is 1 with none swapped,
    and falls.

    Raises:
        ConfigError: it is not a network of sdnet, or no two blocks have the same shape.
    """
    from scipy.stats import kendalltau

    stages = _alike(subject.model)
    L = sum(len(stage) for stage, _ in stages)
    pairs = [
        (s, i, j) for s, (_, alike) in enumerate(stages) for i in alike for j in alike if i < j
    ]
    if not pairs:
        raise ConfigError(f"{subject.name} has no two blocks of the same shape in a stage to swap")
    rows = []
    for k in range(L + 1):
        for repeat in range(n if k else 1):
            orders = [list(range(len(stage))) for stage, _ in stages]
            for chosen in rng.generator(seed, "reorder", k, repeat).integers(len(pairs), size=k):
                s, i, j = pairs[chosen]
                orders[s][i], orders[s][j] = orders[s][j], orders[s][i]
            # Places in the whole network; those of a stage all come before those of the next.
            places = [(s, block) for s, order in enumerate(orders) for block in order]
            ranks = [sorted(places).index(place) for place in places]
            with _reordered([stage for stage, _ in stages], orders):
                scores = subject.scores(part)
            tau = float(kendalltau(range(L), ranks).statistic)
            rows.append({"swaps": k, "kendall_tau": tau, **scores})
    return rows


def _alike(model: nn.Module) -> list[tuple[nn.Sequential, list[int]]]:
    """The stages, and in each the places of the blocks that keep the shape."""
    if not isinstance(model, ResNet):
        raise ConfigError(
            f"blocks can be swapped in sdnet's ResNets, got {type(model).__name__}, whose blocks "
            f"may be called by name"
        )
    stages = [getattr(model, name) for name in model.layers]
    return [
        (stage, [i for i, block in enumerate(stage) if getattr(block, "downsample", 0) is None])
        for stage in stages
    ]


@contextmanager
def _reordered(stages: Sequence[nn.Sequential], orders: Sequence[Sequence[int]]) -> Iterator[None]:
    before = [list(stage) for stage in stages]
    try:
        for stage, blocks, order in zip(stages, before, orders, strict=True):
            for place, block in enumerate(order):
                stage[place] = blocks[block]
        yield
    finally:
        for stage, blocks in zip(stages, before, strict=True):
            for place, block in enumerate(blocks):
                stage[place] = block
