"""What a trainer tells, and to whom."""

from typing import Any


class Listener:
    """Is told what happens in a run: the console and Weights & Biases are listeners."""

    def on_start(self, trainer: Any) -> None:
        """Before the first step of this process, which need not be the run's first."""

    def on_gradients(self, trainer: Any) -> None:
        """In every step, when the gradients are whole and the weights have not moved."""

    def on_step(self, trainer: Any) -> None:
        """After every step."""

    def on_row(self, trainer: Any, row: dict[str, float | None]) -> None:
        """After every evaluation, when its row is recorded and the state is saved."""

    def measures(self) -> dict[str, float]:
        """What it found at the last evaluation, for those who log it."""
        return {}

    def state(self) -> dict[str, Any] | None:
        """What of it belongs into a checkpoint."""
        return None

    def restore(self, trainer: Any, state: dict[str, Any] | None) -> None:
        """Takes on what `state` gave, when the trainer has been restored; None where it is new."""
