"""W&B's own library against a server and a service that fail, in processes of their own."""

import json
import logging
import os
import signal
from pathlib import Path

import psutil
import pytest
import wandb

from tests.commands import Forked
from tests.listeners.wandb_server import Server
from tests.test_command_line import items, wandb_records

SETTINGS = {"project": "p", "entity": None, "group": "g", "tags": []}
ANSWERS = [401, 403, 429, 500, "hang", "die"]
# The service's ways to fail to start: what is run in its place.
SERVICES = {"ends": "#!/bin/sh\nexit 3\n", "hangs": "#!/bin/sh\nread forever < pipe\n"}
SERVICES["is none"] = "nonsense"


def service():
    return [p for p in psutil.Process().children() if p.name() == "wandb-core"]


class Told(logging.Handler):
    """Keeps what is told, for a line of this process's output for each run."""

    def __init__(self):
        super().__init__()
        self.warnings = []
        logging.getLogger("sdnet").addHandler(self)

    def emit(self, record):
        self.warnings.append(record.getMessage())

    def print(self, label, run):
        print(json.dumps([label, run.mode, self.warnings]))
        self.warnings = []


def write(run, first):
    for value in range(first, first + 3):
        run.do(lambda run, value=value: run.log({"a": value}))


def serve():
    """A server with this process's variables set for it."""
    server = Server()
    os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
    return server


def begin(tracking, folder, label):
    path = Path(folder, str(label))
    path.mkdir()
    if label == "a file":
        (path / "wandb").touch()
    run_id = str(label).replace(" ", "-")
    return tracking.Run(SETTINGS, tracking.resolve_mode("auto"), path, run_id, False)


def failing_at_the_start(folder):
    from sdnet.listeners import wandb as tracking

    tracking.ANSWER, told, server = 0.5, Told(), serve()
    for server.fault in ANSWERS:
        run = begin(tracking, folder, server.fault)
        write(run, 0)
        run.do(lambda run: run.finish())
        told.print(server.fault, run)
    wandb.teardown()  # as at the end of a command


def failing_on_the_way(folder):
    from sdnet.listeners import wandb as tracking

    told, server = Told(), serve()
    tracking.BEGIN = tracking.ANSWER = 60.0  # of a busy machine, too
    for fault in ["killed", "stopped", *ANSWERS, None]:
        server.fault = None
        tracking.UPLOAD, tracking.END = 0.5, 9.0
        run = begin(tracking, folder, fault)
        write(run, 0)
        if fault == "killed":
            os.kill(service()[0].pid, signal.SIGKILL)
            service()[0].wait()
        elif fault == "stopped":
            os.kill(service()[0].pid, signal.SIGSTOP)
            tracking.END = 0.5
        else:
            server.fault = fault
        write(run, 3)
        run.do(lambda run: run.finish())
        told.print(fault, run)
    wandb.teardown()


def without_a_service(folder):
    from wandb.sdk.lib.service import service_process

    from sdnet.listeners import wandb as tracking

    told, found, tracking.BEGIN = Told(), service_process.get_core_path, 0.7
    os.mkfifo("pipe")
    for label, text in SERVICES.items():
        program = Path(folder, f"service that {label}", "wandb-core")
        program.parent.mkdir()
        program.write_text(text)
        program.chmod(0o755)
        service_process.get_core_path = lambda program=program: str(program)
        run = begin(tracking, folder, label)
        write(run, 0)
        told.print(label, run)
        assert service() == []
    service_process.get_core_path, tracking.BEGIN = found, 17.0
    told.print("a file", begin(tracking, folder, "a file"))
    run = begin(tracking, folder, "sound")
    write(run, 0)
    run.do(lambda run: run.finish())
    told.print("sound", run)
    wandb.teardown()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """For each fault: its folder, how its run began and what was told."""
    processes, found = {}, {}
    for function in (failing_at_the_start, failing_on_the_way, without_a_service):
        folder = tmp_path_factory.mktemp(function.__name__)
        processes[function] = folder, Forked(folder, {}, function, folder)
    for function, (folder, process) in processes.items():
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), err
        for label, mode, warnings in map(json.loads, out.splitlines()):
            found[function, label] = folder / str(label), mode, warnings
    return found


def logged(folder, kind):
    """The values in the W&B file of a run that came to its end."""
    (file,) = folder.glob(f"wandb/{kind}-*/run-*.wandb")
    records = wandb_records(file)
    assert any(record.HasField("exit") for record in records)
    return [items(r.history.item)["a"] for r in records if r.HasField("history")]


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_server_that_fails_at_the_start_makes_a_run_offline_and_whole(outcomes, fault):
    folder, mode, warnings = outcomes[failing_at_the_start, fault]
    assert mode == "offline" and logged(folder, "offline-run") == [0, 1, 2]
    (warning,) = warnings
    assert warning.startswith("W&B cannot be used (") and "\n" not in warning
    assert warning.endswith("): for this run it is offline")


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_server_that_fails_on_the_way_costs_nothing_here(outcomes, fault):
    folder, mode, warnings = outcomes[failing_on_the_way, fault]
    assert mode == "online" and logged(folder, "run") == [0, 1, 2, 3, 4, 5]
    assert "wandb sync" in warnings[-1] and len(set(warnings)) == len(warnings) <= 2


@pytest.mark.parametrize("fault, reason", [("killed", "Connection"), ("stopped", "no answer in")])
def test_a_service_that_is_lost_is_told_once_and_the_next_run_has_another(outcomes, fault, reason):
    _, mode, (warning,) = outcomes[failing_on_the_way, fault]
    assert mode == "online" and reason in warning
    assert warning.endswith("nothing more is logged to it")
    folder, mode, warnings = outcomes[failing_on_the_way, None]
    assert (mode, warnings) == ("online", []) and logged(folder, "run") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("fault", [*SERVICES, "a file"])
def test_a_run_whose_wandb_cannot_begin_goes_without(outcomes, fault):
    _, mode, (warning,) = outcomes[without_a_service, fault]
    assert mode == "disabled" and warning.startswith("W&B cannot be used (")
    folder, mode, warnings = outcomes[without_a_service, "sound"]
    assert (mode, warnings) == ("offline", []) and logged(folder, "offline-run") == [0, 1, 2]
