"""Weights & Biases: the same numbers as the run folder's, online or in an offline run beside them.

Nothing here prompts, and a server that cannot be reached never stops a run.
"""

import hashlib
import json
import logging
import netrc
import os
import shutil
import socket
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sdnet.training.trainer import Listener, Trainer

if TYPE_CHECKING:
    from sdnet.analysis.report import Report

log = logging.getLogger(__name__)
UNKNOWN = {"mode": "disabled", "entity": None, "project": "sdnet", "group": None, "tags": []}
INTERVAL = "interval/active_blocks"  # mean since the last measurement, on an axis of steps


def has_credentials(host: str) -> bool:
    """Whether an API key for the W&B server is in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def resolve_mode(mode: str) -> str:
    """`online`, `offline` or `disabled` for a setting that may be `auto`.

    Raises:
        ValueError: `online` without credentials.
    """
    if mode == "auto":  # W&B's own variable may say more
        mode = os.environ.get("WANDB_MODE", mode)
    if mode in ("offline", "disabled"):
        return mode
    import wandb

    url = urlsplit(wandb.setup().settings.base_url)
    if not has_credentials(url.hostname):
        if mode == "online":
            raise ValueError(
                "mode online needs credentials: run `wandb login` or set WANDB_API_KEY; "
                "auto and offline work without"
            )
        return "offline"
    if urllib.request.getproxies().get(url.scheme):
        return "online"  # the proxy may reach what this machine does not
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname, port), timeout=5).close()
    except OSError as error:
        log.warning("W&B at %s cannot be reached (%s): this run is offline", url.hostname, error)
        return "offline"
    return "online"


def start_run(
    settings: dict[str, Any], mode: str, folder: Path, run_id: str, resumed: bool, **arguments: Any
):
    """Begins a W&B run, or continues the one of that id; offline where the server does not answer.

    Args:
        settings: the configuration's `wandb`.
        mode: what `resolve_mode` gave, not `disabled`.
        folder: W&B's files go to `wandb/` in it.
        resumed: whether the run has earlier pieces, to which this one is to be added on upload.
        arguments: more for `wandb.init`.
    """
    import wandb

    arguments |= {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": settings["group"],
        "tags": settings["tags"],
        "dir": folder,
        "id": run_id,
        "resume": "allow" if resumed or mode == "online" else None,
        "reinit": "finish_previous",
        "settings": wandb.Settings(silent=True, console="off", init_timeout=15),
    }
    if "WANDB_SWEEP_ID" in os.environ:  # W&B's agent has decided where the run belongs
        arguments |= dict.fromkeys(("id", "project", "entity", "resume"))
    try:
        return wandb.init(mode=mode, **arguments)
    except wandb.errors.Error as error:  # no answer in time, a key that is refused, ...
        log.warning("W&B cannot be used (%s): this run is offline", error)
        wandb.teardown()
        return wandb.init(mode="offline", **arguments)


def log_report(report: "Report", mode: str | None = None) -> None:
    """Logs a report's table and figures as a run of job type `report` in its runs' group.

    Reports on the same group share one W&B run, which then shows the latest.

    Args:
        mode: as `wandb.mode`; None: that of the report's runs.

    Raises:
        ValueError: `online` without credentials.
    """
    settings = UNKNOWN | report.runs[0].config.get("wandb", {})
    mode = resolve_mode(mode or settings["mode"])
    if mode == "disabled":
        return
    import wandb

    place = json.dumps([settings[key] for key in ("entity", "project", "group")])
    run_id = hashlib.blake2b(place.encode(), digest_size=4).hexdigest()
    name = f"report-{settings['group']}"
    for earlier in (report.out / "wandb").glob(f"offline-run-*-{run_id}*"):
        shutil.rmtree(earlier)  # never uploaded, and superseded by what follows
    with start_run(settings, mode, report.out, run_id, False, name=name, job_type="report") as run:
        table = report.table.astype(object).where(report.table.notna(), None)
        run.log({"report": wandb.Table(dataframe=table, allow_mixed_types=True)})
        run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in report.figures})
        run.summary.update({"runs": len(report.runs), "left_out": len(report.left_out)})


class WandbListener(Listener):
    """Logs a run to W&B; `mode` is what `resolve_mode` gave, not `disabled`.

    Args:
        config: the resolved configuration, logged as it is.
        folder: the run folder; W&B's files go to `wandb/` in it.
        run_id: kept by a resumed run.
    """

    def __init__(
        self,
        config: dict[str, Any],
        mode: str,
        folder: Path,
        name: str,
        run_id: str,
        resumed: bool,
    ):
        shown = {"name": config["wandb"]["name"] or name, "job_type": "train", "config": config}
        self.run = start_run(config["wandb"], mode, folder, run_id, resumed, **shown)
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric(INTERVAL, step_metric="step")
        self.log_every = config["trainer"]["log_every"]
        self.seen = (0, 0.0)  # steps and active blocks already logged

    def log(self, values: dict[str, Any]) -> None:
        """Logs to W&B, whose troubles never stop a run."""
        try:
            self.run.log(values)
        except Exception as error:
            log.warning("not logged to W&B: %s: %s", type(error).__name__, error)

    def on_start(self, trainer: Trainer) -> None:
        self.seen = (trainer.counters.step, trainer.counters.active)

    def on_step(self, trainer: Trainer) -> None:
        step, active = trainer.counters.step, trainer.counters.active
        if step % self.log_every == 0 or step == trainer.total_steps:
            mean = (active - self.seen[1]) / (step - self.seen[0])
            self.log({"step": step, INTERVAL: mean})
            self.seen = (step, active)

    def on_row(self, trainer: Trainer, row: dict[str, float | None]) -> None:
        self.log({key: value for key, value in row.items() if value is not None})

    def finish(self, summary: dict[str, Any], figures: list[Path]) -> None:
        """Ends the W&B run with the numbers of summary.json and the figures.

        Args:
            summary: empty where another process has the run by now.
        """
        import wandb

        self.run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in figures})
        self.run.summary.update(summary)
        self.run.finish(exit_code=0 if summary.get("status") == "completed" else 1)
