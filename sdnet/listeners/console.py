"""What a run shows: a progress bar, a line per evaluation, and the result."""

import logging
import time
from datetime import timedelta
from multiprocessing import current_process
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sdnet import processes
from sdnet.training.trainer import Listener, Trainer

log = logging.getLogger("sdnet")
BAR_SECONDS = 0.5  # between updates of the bar, each of which waits for the device

LINE = (
    ("epoch", "epoch", "{:6.4g}"),
    ("lr", "lr", "{:8.3g}"),
    ("train_loss", "train loss", "{:10.4f}"),
    ("train_error", "train err %", "{:11.2f}"),
    ("val_error", "val err %", "{:9.2f}"),
    ("test_error", "test err %", "{:10.2f}"),
    ("images_per_second", "images/s", "{:8.0f}"),
    ("active_blocks", "active blocks", "{:13.2f}"),
)


class ConsoleHandler(logging.Handler):
    """Shows what the project logs, above the progress bar if there is one."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def set_up() -> Console:
    """The console of this process, to which the project's log goes from now on."""
    console = Console(quiet=not processes.is_main())
    if not console.is_terminal:
        console = Console(
            width=160, quiet=console.quiet
        )  # a table in a file or a pipe is not to be cut at 80
    log.setLevel(logging.DEBUG)  # train.log has more than the console
    for talkative in ("fontTools", "alembic"):  # about every figure in PDF, about its plugins
        logging.getLogger(talkative).setLevel(logging.WARNING)
    log.propagate = False  # Hydra's own handler would print every line once more
    log.handlers = [ConsoleHandler(console)]
    return console


class ConsoleListener(Listener):
    """Shows training on a terminal; where the output is none, the lines without the bar."""

    def __init__(self, console: Console):
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
            # a launcher's worker processes share the terminal: their bars would mix
            disable=not console.is_terminal or current_process().name != "MainProcess",
        )
        self.shown = 0.0

    def __enter__(self) -> "ConsoleListener":
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()

    def on_start(self, trainer: Trainer) -> None:
        self.first = (trainer.counters.step, time.perf_counter())
        self.task = self.progress.add_task("training", total=trainer.total_steps, numbers="")
        log.info("  ".join(title.rjust(_width(form)) for _, title, form in LINE))

    def on_step(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        step = trainer.counters.step
        seconds = trainer.counters.interval_seconds  # 0 at the first step after an evaluation
        if self.progress.disable or now - self.shown < BAR_SECONDS or not seconds:
            return
        self.shown = now
        loss, error = trainer.training_loss_and_error()
        rate = trainer.counters.images / seconds
        left = (trainer.total_steps - step) * (now - self.first[1]) / (step - self.first[0])
        self.progress.update(
            self.task,
            completed=step,
            description=f"epoch {step // trainer.steps_per_epoch + 1}/{trainer.epochs}",
            numbers=f"loss {loss:.4f}  error {error:.2f} %  {rate:.0f} images/s  "
            f"{timedelta(seconds=round(left))} left",
        )

    def on_row(self, trainer: Trainer, row: dict[str, float | None]) -> None:
        cells = [
            (form.format(row[key]) if row[key] is not None else "-").rjust(_width(form))
            for key, _, form in LINE
        ]
        log.info("  ".join(cells))


def _width(form: str) -> int:
    return int(form.split(":")[1].split(".")[0])


def result_lines(config: dict[str, Any], summary: dict[str, Any], folder: str) -> list[str]:
    """What the end of a run says: p_L, active blocks, the errors and where everything is."""
    schedule = config["schedule"]
    p_L = schedule.get("p_L")
    if p_L is not None:
        p_L = f"{p_L:g}" if isinstance(p_L, int | float) else p_L
    lines = [
        f"schedule      {schedule.get('name', schedule['_target_'])}"
        + ("" if p_L is None else f", p_L {p_L}"),
        f"active blocks {summary['mean_active_blocks']:.2f} of {summary['blocks']} measured, "
        f"{summary['expected_active_blocks']:.2f} expected",
    ]
    chosen = f"at epoch {summary['best_epoch']:g}: {summary['selection']}"
    if summary["val_error"] is not None:
        chosen += f" ({summary['val_error']:.2f} %)"
    top5 = summary.get("test_top5_error")
    top5 = [] if top5 is None else [f"              {top5:.2f} % top-5, at the same epoch"]
    return [
        *lines,
        f"test error    {summary['test_error']:.2f} % {chosen}",
        *top5,
        f"              {summary['final_test_error']:.2f} % at the last epoch",
        f"time          {summary['train_seconds']:.1f} s training, "
        f"{summary['eval_seconds']:.1f} s evaluating",
        f"run folder    {folder}",
        "              metrics.csv summary.json config.yaml checkpoints/best.pt",
        "              figures/survival.png figures/curves.png",
    ]
