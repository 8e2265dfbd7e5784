"""What a run has done so far, and how it ends before its time."""

from dataclasses import dataclass


@dataclass
class Counters:
    """What a run has done so far; kept in its checkpoints."""

    step: int = 0
    active: int = 0  # blocks that were active, summed over all steps
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    other_seconds: float = 0.0  # processor time that other processes took meanwhile
    # since the last evaluation:
    images: int = 0
    interval_steps: int = 0
    interval_active: int = 0
    interval_seconds: float = 0.0


class Diverged(Exception):
    """The training loss is no longer a finite number."""


class Interrupted(Exception):
    """The run was asked to stop, by the signal of that number if any, and its state is saved."""

    def __init__(self, message: str, number: int = 0):
        super().__init__(message)
        self.number = number
