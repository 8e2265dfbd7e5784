"""Survival schedules: which block survives with which probability.

A schedule is a callable `schedule(stage_blocks, progress=1.0) -> [p_1, ..., p_L]`, where
`stage_blocks` are the residual blocks per stage (`[18, 18, 18]`), `progress` in [0, 1] is the
fraction of training that is done, and the result holds a survival probability per block in order
of depth. A schedule of your own is one such class and one file in `conf/schedule/`.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from sdnet.models.checks import (
    check_choice,
    check_count,
    check_drop_rate,
    check_survival,
    listed,
    shown,
)

RULES = ("paper", "timm", "efficientnet")
MOMENTS = 100  # of a training, over which `mean_survival` is taken


class ScheduleError(ValueError):
    """A schedule gives something else than a survival probability for each block."""


def survival_of(
    schedule: Callable[..., Iterable[float]],
    stage_blocks: Sequence[int],
    progress: float | None = None,
) -> list[float]:
    """What a schedule gives, as Python's floats; at its end where no `progress` is said.

    Raises:
        ScheduleError: that is not a survival probability for each block, or it is no schedule.
    """
    if not callable(schedule) or isinstance(schedule, type):
        raise ScheduleError(
            f"schedule must be a survival schedule, e.g. LinearDecay(p_L=0.5), "
            f"got {shown(schedule)}"
        )
    L = sum(stage_blocks)
    given = schedule(stage_blocks) if progress is None else schedule(stage_blocks, progress)
    values = listed(given)
    if values is None or len(values) != L:
        got = shown(given) if values is None else len(values)
        raise ScheduleError(f"schedule must give {L} probabilities, one per block, got {got}")
    try:
        return [check_survival("survival", p) for p in values]
    except ValueError as error:
        raise ScheduleError(str(error)) from error


def mean_survival(
    schedule: Callable[..., Iterable[float]], stage_blocks: Sequence[int]
) -> list[float]:
    """A block's survival averaged over the training: that of most schedules, which never change."""
    moments = [(i + 0.5) / MOMENTS for i in range(MOMENTS)]
    given = [survival_of(schedule, stage_blocks, progress) for progress in moments]
    if all(survival == given[0] for survival in given):
        return given[0]
    return [fmean(of_block) for of_block in zip(*given, strict=True)]


class LinearDecay:
    """Survival falls linearly with depth, from p_0 at the input to p_L at the last block.

    `rule` sets how far along block l of L is:

    - `paper`: l/L, so p_l = p_0 - l/L (p_0 - p_L), equation 4 of Huang et al. (2016);
    - `timm`: (l-1)/(L-1), so the first block is never dropped (a single block gets p_L);
    - `efficientnet`: (l-1)/L, as torchvision's EfficientNet; p_L itself is not reached.
    """

    def __init__(self, p_L: float = 0.5, p_0: float = 1.0, rule: str = "paper"):
        self.p_L = check_survival("p_L", p_L)
        self.p_0 = check_survival("p_0", p_0)
        self.rule = check_choice("rule", rule, RULES)

    def __call__(self, stage_blocks: Sequence[int], progress: float = 1.0) -> list[float]:
        L = sum(stage_blocks)
        return [self._survival(self._depth(l, L)) for l in range(1, L + 1)]

    def _survival(self, depth: float) -> float:
        # p_L itself at the end, not what rounding makes of it
        return self.p_L if depth == 1.0 else self.p_0 - depth * (self.p_0 - self.p_L)

    def _depth(self, l: int, L: int) -> float:
        if self.rule == "paper":
            return l / L
        if self.rule == "efficientnet":
            return (l - 1) / L
        return (l - 1) / (L - 1) if L > 1 else 1.0


class Uniform:
    """The same survival probability p_L for every block."""

    def __init__(self, p_L: float):
        self.p_L = check_survival("p_L", p_L)

    def __call__(self, stage_blocks: Sequence[int], progress: float = 1.0) -> list[float]:
        return [self.p_L] * sum(stage_blocks)


class Constant:
    """Constant depth, the baseline: every block always survives."""

    def __call__(self, stage_blocks: Sequence[int], progress: float = 1.0) -> list[float]:
        return [1.0] * sum(stage_blocks)


def linear_drop_rates(num_blocks: int, p_max: float) -> list[float]:
    """Drop rates p_max * i/(L-1) for i = 0..L-1 over all L blocks; `[p_max]` for one block.

    Raises:
        ValueError: `num_blocks` below 1 or `p_max` outside [0, 1).
    """
    num_blocks, p_max = check_count("num_blocks", num_blocks), check_drop_rate("p_max", p_max)
    if num_blocks == 1:
        return [p_max]
    return [p_max * i / (num_blocks - 1) for i in range(num_blocks)]
