"""What a trainer tells, and to whom."""

from typing import Any


class Listener:
    """Is told what happens in a run: the console and Weights & Biases are listeners."""

    def on_start(self, trainer: Any) -> None:
        """Before the first step of this process, which need not be the run's first."""

    def on_step(self, trainer: Any) -> None:
        """After every step."""

    def on_row(self, trainer: Any, row: dict[str, float | None]) -> None:
        """After every evaluation, when its row is recorded and the state is saved."""
