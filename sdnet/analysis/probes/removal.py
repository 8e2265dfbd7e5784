"""Which blocks a network can do without, for fewer multiply-adds of an image."""

from typing import Any

from sdnet.analysis.probes.subject import Subject, some
from sdnet.config.errors import ConfigError

Row = dict[str, Any]


def truncate(subject: Subject, part: str = "test") -> list[Row]:
    """The last k blocks of a stage out, k = 0 to all of them, each stage by itself."""
    layout, full = subject.layout, subject.scores(part)
    rows, first = [], 0
    for stage, blocks in enumerate(layout.stage_blocks, start=1):
        last = first + blocks
        for k in range(blocks + 1):
            out = [gate for gate, block in enumerate(layout.block_of) if last - k <= block < last]
            with subject.without(out):
                scores = subject.scores(part) if k else full
            rows.append({"stage": stage, "blocks_out": k, "macs": _macs(subject, out), **scores})
        first = last
    return rows


def pareto(
    subject: Subject, steps: int | None = None, most_images: int | None = None, seed: int = 0
) -> list[Row]:
    """One branch after the other out, greedily by validation data; a row for each step.

    Each step takes the branch out whose `price` is lowest: the increase of the validation loss over
    the step before, per million multiply-adds saved. Of branches without which the loss falls, the
    one with the largest product of fall and saving goes first.

    It costs L (L + 1) / 2 evaluations on validation, and L + 1 on test; with `steps` only the first
    of those steps, about steps x L.

    Args:
        most_images: of the validation part, drawn by the seed; None: all.

    Raises:
        ConfigError: there is no validation part.
    """
    if "validation" not in subject.parts:
        raise ConfigError(
            f"--pareto chooses blocks by validation images, and {subject.name} has none: train "
            f"with dataset.validation, e.g. 0.1"
        )
    part = some(subject.parts["validation"], most_images, seed)
    L = len(subject.layout.gates)
    out: list[int] = []
    before = subject.scores(part)
    rows = [_step(subject, [], before)]
    for _ in range(L if steps is None else min(steps, L)):
        found = {}
        for gate in set(range(L)) - set(out):
            with subject.without([*out, gate]):
                found[gate] = subject.scores(part)
        rises = {gate: scores["loss"] - before["loss"] for gate, scores in found.items()}
        gate = min(sorted(rises), key=lambda gate: _rank(rises[gate], subject.saved[gate]))
        out, before = [*out, gate], found[gate]
        price = {"price": rises[gate] / (subject.saved[gate] / 1e6)}
        rows.append(_step(subject, out, before) | subject.place(gate) | price)
    return rows


def _rank(rise: float, saved: int) -> float:
    return rise / saved if rise > 0 else rise * saved


def _step(subject: Subject, out: list[int], validation: dict[str, float]) -> Row:
    row: Row = {"step": len(out), "macs": _macs(subject, out)}
    row |= {f"validation_{name}": value for name, value in validation.items()}
    with subject.without(out):
        return row | {f"test_{name}": value for name, value in subject.scores("test").items()}


def _macs(subject: Subject, out: list[int]) -> int:
    return subject.macs.total - sum(subject.saved[gate] for gate in out)
