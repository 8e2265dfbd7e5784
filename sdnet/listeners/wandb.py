"""Weights & Biases: the same numbers as the run folder's, online or in an offline run beside them.

This is the border to it. Nothing here prompts, no exception of W&B's gets past, and a run waits
for it half a minute at most, in all. Where it fails, that is told, and the run goes without it.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from sdnet.analysis.report import Report

log = logging.getLogger(__name__)
UNKNOWN = {"mode": "disabled", "entity": None, "project": "sdnet", "group": None, "tags": []}
words = log.getChild("words")  # what W&B would print; an error it raises as well
words.addFilter(lambda record: record.levelno == logging.WARNING)

MODES = {"run": "online", "shared": "online", "dryrun": "offline"}  # W&B's other words
SECRET = ("KEY", "TOKEN", "HEADER", "PROXY")  # in the names of variables that are not shown

# The seconds that a run waits for W&B: REACH, BEGIN, END and FORGET are 30 together.
REACH = 3.0  # for the server to take a connection
BEGIN = 17.0  # for a run to begin, online or else offline
ANSWER = 8.0  # of these, for the server to know the run
END = 9.0  # for anything that a run is told, its end above all
UPLOAD = 8.0  # of these, for what is not uploaded by then
FORGET = 1.0  # for a service to end by itself


class Mistake(ValueError):
    """A user's, the one error that gets past the border."""


class Lost(Exception):
    """W&B failed, or was late."""


def ask(seconds: float | None, function: Callable, *arguments: Any, **named: Any) -> Any:
    """What a function that calls W&B returns.

    It runs in a thread of its own, which is left behind when the time is over.

    Raises:
        Mistake: as the function does.
        Lost: whatever else it raises, or it is late.
    """
    answer: Future = Future()

    def call():
        try:
            answer.set_result(function(*arguments, **named))
        except BaseException as error:  # W&B also ends processes
            answer.set_exception(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer.done():
        raise Lost(f"no answer in {seconds:g} s")
    error = answer.exception()
    if isinstance(error, Mistake):
        raise error
    if error is not None:
        text = " ".join(str(error).split())  # some have several lines, some none
        raise Lost(f"{type(error).__name__}: {text}" if text else type(error).__name__) from error
    return answer.result()


def forget() -> None:
    """Ends W&B's service, in whatever state it is: what begins next has one of its own."""
    import wandb

    os.environ.pop("WANDB_SERVICE", None)  # the address of one that another process started
    logging.getLogger("wandb").handlers = [logging.NullHandler()]  # those of runs without an end
    with suppress(Lost):
        ask(FORGET, wandb.teardown)
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any("wandb-core" in word for word in process.cmdline()):
                process.kill()
                process.wait(FORGET)


def load_settings() -> Any:
    """W&B's settings, of its files and its variables; what it says goes to the log from here on."""
    import wandb
    from wandb.sdk import wandb_setup

    settings = wandb_setup.singleton().settings  # wandb.setup() would start the service
    wandb.termsetup(wandb.Settings(silent=True), words)
    if threading.excepthook.__module__ != __name__:
        threading.excepthook = _keep_quiet(threading.excepthook)
    return settings


def _keep_quiet(before: Callable) -> Callable:
    """Has an error that ends a thread of W&B's own printed by nobody.

    They poll the service also of runs that had no end, and after it.
    """

    def hook(args):
        frames = traceback.walk_tb(args.exc_traceback)
        modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
        began = next((name for name in modules if name != "threading"), "")
        if began.startswith("wandb."):  # not where somebody else's thread called W&B
            log.debug("a thread of W&B's ended", exc_info=args.exc_value)
        else:
            before(args)

    return hook


def check_variables() -> None:
    """Raises a Mistake that names the variable which W&B does not understand."""
    import wandb
    from pydantic import ValidationError

    settings = wandb.Settings()
    for name, value in os.environ.items():
        try:
            settings.update_from_env_vars({name: value})
        except Exception as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            shown = "" if any(word in name for word in SECRET) else f", got {value!r}"
            raise Mistake(f"the variable {name} is refused by W&B: {reason}{shown}") from error


def has_credentials(url: str) -> bool:
    """Whether W&B finds a key for its server: in a variable, the netrc file or its settings.

    Raises:
        Mistake: what it finds cannot be one.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(host=url, source="", prompt=False, update_session=False)
    except AuthenticationError as error:
        raise Mistake(f"credentials: {error}") from error
    return found is not None


def resolve_mode(mode: str) -> str:
    """`online`, `offline` or `disabled` for a setting that may be `auto`.

    Raises:
        ValueError: `online` without credentials, or something that W&B does not understand.
    """
    try:
        return mode if mode == "disabled" else ask(None, _resolve, mode)
    except Lost as error:
        log.warning("W&B cannot be used (%s): it is disabled", error)
        return "disabled"


def _resolve(mode: str) -> str:
    # The end of a process would wait for W&B's reports of its own errors.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    check_variables()
    settings = load_settings()
    must = mode == "online" or "WANDB_MODE" in os.environ
    if mode == "auto":
        mode = MODES.get(settings.mode, settings.mode)
    if mode != "online":
        return mode
    if not has_credentials(settings.base_url):
        if must:
            raise Mistake(
                "mode online needs credentials: run `wandb login` or set WANDB_API_KEY; "
                "auto and offline work without"
            )
        return "offline"
    url = urlsplit(settings.base_url)
    if getattr(settings, f"{url.scheme}_proxy") or urllib.request.getproxies().get(url.scheme):
        return "online"  # the proxy may reach what this machine does not
    address = (url.hostname, url.port or (80 if url.scheme == "http" else 443))
    try:
        ask(REACH, lambda: socket.create_connection(address, timeout=REACH).close())
    except Lost as error:
        log.warning("W&B at %s cannot be reached (%s): this run is offline", url.hostname, error)
        return "offline"
    return "online"


def check_space(folder: Path) -> None:
    """Raises an OSError where the disk is full, of which W&B's service says nothing."""
    if not shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def start_run(
    settings: dict[str, Any], mode: str, folder: Path, run_id: str, resumed: bool, **arguments: Any
):
    """Begins a W&B run, or continues the one of that id.

    Args:
        settings: the configuration's `wandb`.
        mode: what `resolve_mode` gave, not `disabled`.
        folder: W&B's files go to `wandb/` in it.
        resumed: whether the run has earlier pieces, to which this one is to be added on upload.
        arguments: more for `wandb.init`.
    """
    import wandb

    check_space(folder)
    load_settings()
    arguments |= {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": settings["group"],
        "tags": settings["tags"],
        "dir": folder,
        "id": run_id,
        "resume": "allow" if resumed or mode == "online" else None,
        "reinit": "finish_previous",
        "settings": wandb.Settings(
            silent=True, console="off", init_timeout=ANSWER, finish_timeout=UPLOAD
        ),
    }
    if "WANDB_SWEEP_ID" in os.environ:  # W&B's agent has decided where the run belongs
        arguments |= dict.fromkeys(("id", "project", "entity", "resume"))
    return wandb.init(mode=mode, **arguments)


class Run:
    """A W&B run, until something fails or is late: that is told, and nothing more goes to W&B.

    The arguments are `start_run`'s.

    Attributes:
        id: W&B's, which may be an agent's.
        mode: how it began: `online`, `offline`, or `disabled` where it could not.
    """

    def __init__(
        self, settings: dict[str, Any], mode: str, folder: Path, run_id: str, *more, **named: Any
    ):
        self.id, self.mode, self.folder, self.run = run_id, mode, folder, None
        until = time.monotonic() + BEGIN
        while self.run is None and self.mode != "disabled":
            limit = ANSWER + 1 if self.mode == "online" else until - time.monotonic()
            begin = (limit, start_run, settings, self.mode, folder, run_id)
            try:
                self.run = ask(*begin, *more, **named)
                self.id = self.run.id
            except Lost as error:
                self.mode = "offline" if self.mode == "online" else "disabled"
                log.warning("W&B cannot be used (%s): for this run it is %s", error, self.mode)
                forget()

    def do(self, function: Callable[[Any], Any]) -> None:
        """Calls a function with W&B's run."""
        if self.run is None:
            return
        try:
            ask(END, self._call, function)
        except Lost as error:
            self.run = None
            log.warning("W&B is lost (%s): nothing more is logged to it", error)
            forget()

    def _call(self, function: Callable[[Any], Any]) -> None:
        function(self.run)
        check_space(self.folder)


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
    for earlier in (report.out / "wandb").glob(f"offline-run-*-{run_id}*"):
        shutil.rmtree(earlier, ignore_errors=True)  # never uploaded, superseded by what follows
    named = {"name": f"report-{settings['group']}", "job_type": "report"}

    def fill(run):
        table = report.table.astype(object).where(report.table.notna(), None)
        run.log({"report": wandb.Table(dataframe=table, allow_mixed_types=True)})
        run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in report.figures})
        run.summary.update({"runs": len(report.runs), "left_out": len(report.left_out)})
        run.finish()

    Run(settings, mode, report.out, run_id, False, **named).do(fill)
