"""A run as Weights & Biases is told of it: its numbers, and in the end its figures and mistakes."""

from pathlib import Path
from typing import Any

from sdnet.analysis.measures import confusion_rows
from sdnet.listeners.wandb import Run
from sdnet.runs.folder import RunFolder
from sdnet.runs.predictions import read_predictions
from sdnet.training.listener import Listener
from sdnet.training.trainer import Trainer

INTERVAL = "interval/active_blocks"  # mean since the last measurement, on an axis of steps


class WandbListener(Listener):
    """Logs a run to W&B; `mode` is what `resolve_mode` gave, not `disabled`.

    Args:
        config: the resolved configuration, logged as it is.
        folder: the run folder; W&B's files go to `wandb/` in it.
        run_id: kept by a resumed run.
    """

    def __init__(
        self, config: dict[str, Any], mode: str, folder: Path, name: str, run_id: str, resumed: bool
    ):
        shown = {"name": config["wandb"]["name"] or name, "job_type": "train", "config": config}
        self.run = Run(config["wandb"], mode, folder, run_id, resumed, **shown)
        self.run.do(lambda run: run.define_metric("*", step_metric="epoch"))
        for name in (INTERVAL, "telemetry/*"):
            self.run.do(lambda run, name=name: run.define_metric(name, step_metric="step"))
        self.log_every = config["trainer"]["log_every"]
        self.seen = (0, 0.0)  # steps and active blocks already logged
        self.classes: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.seen = (trainer.counters.step, trainer.counters.active)
        self.classes = trainer.classes

    def on_step(self, trainer: Trainer) -> None:
        step, active = trainer.counters.step, trainer.counters.active
        if step % self.log_every == 0 or step == trainer.total_steps:
            mean = (active - self.seen[1]) / (step - self.seen[0])
            self.run.do(lambda run: run.log({"step": step, INTERVAL: mean}))
            self.seen = (step, active)

    def on_row(self, trainer: Trainer, row: dict[str, float | None]) -> None:
        known = {key: value for key, value in row.items() if value is not None}
        for listener in trainer.listeners:
            known |= listener.measures()
        self.run.do(lambda run: run.log(known))

    def finish(self, summary: dict[str, Any], figures: list[Path]) -> None:
        """Ends the W&B run with the numbers of summary.json, the figures, and a table of how often
        a class of the test part was taken for which.

        Args:
            summary: empty where another process has the run by now.
        """

        def end(run):
            import wandb

            try:
                run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in figures})
                if rows := self._confusion(summary):
                    data = [list(row.values()) for row in rows]
                    run.log({"confusion": wandb.Table(columns=list(rows[0]), data=data)})
            finally:
                run.summary.update(summary)
                run.finish(exit_code=0 if summary.get("status") == "completed" else 1)

        self.run.do(end)

    def _confusion(self, summary: dict[str, Any]) -> list[dict[str, Any]]:
        """Of a completed run."""
        found = None
        if summary.get("status") == "completed":
            found = read_predictions(RunFolder(self.run.folder).predictions)
        return confusion_rows(found["test"], self.classes) if found else []
