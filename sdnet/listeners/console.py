"""What a run shows: what it is, a progress bar, a line per evaluation, and the result."""

import logging
import os
import time
from datetime import timedelta
from multiprocessing import current_process
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sdnet import processes
from sdnet.runs.identity import label as label_of
from sdnet.runs.shown import counted, visible
from sdnet.training import device as devices
from sdnet.training.listener import Listener
from sdnet.training.trainer import Trainer

log = logging.getLogger("sdnet")
BAR_SECONDS = 0.5  # between updates of the bar, each of which waits for the device
LINE_SECONDS = 60.0  # between lines where there is no bar
LOAD_SECONDS = 10.0  # of training, after which the load by other programs is looked at
LOAD = 0.5  # cores that other programs keep busy: with it torch's threads wait for each other

SHOWN = "SDNET_SHOWN"  # in the environment of processes whose runs another one shows

LINE = (  # at most 80 characters wide
    ("epoch", "epoch", "{:6.4g}"),
    ("lr", "lr", "{:8.3g}"),
    ("train_loss", "train loss", "{:10.4f}"),
    ("train_error", "train err", "{:9.2f}"),  # percent
    ("val_error", "val err", "{:7.2f}"),
    ("test_error", "test err", "{:8.2f}"),
    ("images_per_second", "images/s", "{:8.0f}"),
    ("active_blocks", "blocks", "{:6.2f}"),
)


class ConsoleHandler(logging.Handler):
    """Shows what the project logs, above the progress bar if there is one."""

    def __init__(self, console: Console, label: str = ""):
        super().__init__(logging.INFO)
        self.console, self.label = console, label

    def emit(self, record: logging.LogRecord) -> None:
        text = visible(self.label + self.format(record), keep="\n")
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def set_up(label: str = "") -> Console:
    """The console of this process, to which the project's log goes from now on.

    Args:
        label: of the run, before each line where several runs share the output.
    """
    in_worker = current_process().name != "MainProcess"
    quiet = not processes.is_main() or (in_worker and SHOWN in os.environ)
    console = Console(quiet=quiet, markup=False, emoji=False)  # texts are shown as they are
    if not console.is_terminal:  # a table in a file or a pipe is not to be cut at 80
        console = Console(width=160, quiet=quiet, markup=False, emoji=False)
    log.setLevel(logging.DEBUG)  # train.log has more than the console
    for talkative in ("fontTools", "alembic"):  # about every figure in PDF, about its plugins
        logging.getLogger(talkative).setLevel(logging.WARNING)
    log.propagate = False  # Hydra's own handler would print every line once more
    log.handlers = [ConsoleHandler(console, f"{label} | " if label and in_worker else "")]
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
        self.load = devices.OtherLoad()

    def __enter__(self) -> "ConsoleListener":
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()

    def on_start(self, trainer: Trainer) -> None:
        self.first = (trainer.counters.step, time.perf_counter())
        self.shown = self.first[1] if self.progress.disable else 0.0
        self.load.start()
        self.load_seen = torch.get_num_threads() == 1
        self.task = self.progress.add_task("training", total=trainer.total_steps, numbers="")
        log.info("  ".join(title.rjust(_width(form)) for _, title, form in LINE))

    def on_step(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        step = trainer.counters.step
        seconds = trainer.counters.interval_seconds  # 0 at the first step after an evaluation
        if now - self.first[1] > LOAD_SECONDS and not self.load_seen:
            self.load_seen = True
            self._warn_of_load(self.load.start() / (now - self.first[1]), trainer.device.type)
        pause = LINE_SECONDS if self.progress.disable else BAR_SECONDS
        if now - self.shown < pause or not seconds:
            return
        self.shown = now
        loss, error = trainer.training_loss_and_error()
        rate = trainer.counters.images / seconds
        left = (trainer.total_steps - step) * (now - self.first[1]) / (step - self.first[0])
        epoch = min(step // trainer.steps_per_epoch + 1, trainer.epochs)
        epoch = f"epoch {epoch:.6g}/{trainer.epochs:.6g}"
        numbers = f"loss {loss:.4f}  error {error:.2f} %  {rate:.0f} images/s  "
        numbers += f"{timedelta(seconds=round(left))} left"
        if self.progress.disable:
            log.info("step %d of %d  %s  %s", step, trainer.total_steps, epoch, numbers)
        else:
            self.progress.update(self.task, completed=step, description=epoch, numbers=numbers)

    def _warn_of_load(self, cores: float, device: str) -> None:
        if cores > LOAD and device == "cpu":
            log.warning(
                "Other programs keep %.1f cores busy: trainer.threads=1 may be many times faster "
                "(this run has %d threads, which wait for each other)",
                cores,
                torch.get_num_threads(),
            )

    def on_row(self, trainer: Trainer, row: dict[str, float | None]) -> None:
        cells = [
            (form.format(row[key]) if row[key] is not None else "-").rjust(_width(form))
            for key, _, form in LINE
        ]
        log.info("  ".join(cells))


def _width(form: str) -> int:
    return int(form.split(":")[1].split(".")[0])


def opening_lines(config: dict[str, Any], trainer: Trainer, wandb_mode: str) -> list[str]:
    """What the beginning of a run says: the network, the data, and what they are computed on."""
    loaders, settings = trainer.loaders, config["trainer"]
    parameters = sum(p.numel() for p in trainer.model.parameters())
    sizes = [f"{loaders['train'].count:,} training"]
    if "validation" in loaders:
        sizes.append(f"{loaders['validation'].count:,} validation")
    where = devices.describe(trainer.device)
    device = f"{where['device']} ({where['device_name']}), {settings['precision']}"
    if where["device"] == "cpu":
        device += f", {counted(where['threads'], 'thread')}"
    if trainer.world.size > 1:
        device = f"{trainer.world.size} processes on {device}"
    kept = {"offline": "offline (wandb sync uploads it)", "disabled": "off"}
    return [
        f"network       {parameters:,} parameters, {counted(len(trainer.layout.gates), 'block')}; "
        f"{counted(trainer.epochs, 'epoch')} of {counted(trainer.steps_per_epoch, 'step')}",
        f"data          {', '.join(sizes)}, {loaders['test'].count:,} test images",
        f"computed on   {device}; W&B {kept.get(wandb_mode, wandb_mode)}",
    ]


def title(config: dict[str, Any]) -> str:
    """A run in a few words: `resnet20 on digits, linear_decay, p_L 0.5, seed 0`."""
    model, data = label_of(config["model"]), config["dataset"]["name"]
    return f"{model} on {data}, {schedule_label(config)}, seed {config['seed']}"


def schedule_label(config: dict[str, Any]) -> str:
    """`linear_decay, p_L 0.5`"""
    schedule = config["schedule"]
    p_L = schedule.get("p_L")
    if p_L is not None:
        p_L = f"{p_L:g}" if isinstance(p_L, int | float) else p_L
    return schedule.get("name", schedule["_target_"]) + ("" if p_L is None else f", p_L {p_L}")


def result_lines(config: dict[str, Any], summary: dict[str, Any], folder: str) -> list[str]:
    """What the end of a run says: p_L, active blocks, the errors and where everything is."""
    lines = [
        f"schedule      {schedule_label(config)}",
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
