"""`hydra/launcher=local`: several runs at once on this machine, each in a slot of its own.

A slot is what the environment of a process says: one GPU, or a share of the cores. A run has a new
process, so that neither a crash nor an error of CUDA that stays outlives it. What such a process
needs is imported where it is used: its environment is there before torch is.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from sdnet import processes

log = logging.getLogger("sdnet")
SPAWN = multiprocessing.get_context("spawn")  # a fork would have torch, and this one's environment
LOOK_SECONDS = 1.0  # between looks at the processes; most of their ends are heard at once
MOST = 4000  # characters of an error: an answer has to fit into a pipe that is read at the end


def slots(device: str, per_gpu: int, n_jobs: int) -> list[dict[str, str]]:
    """What each of the runs at once has in its environment, `device` being the runs' setting.

    Raises:
        ConfigError: a number that is none, or a GPU by its number.
    """
    from sdnet.config.errors import ConfigError
    from sdnet.training.device import PER_GPU, visible_gpus

    for name, value in (("per_gpu", per_gpu), ("n_jobs", n_jobs)):
        if type(value) is not int or value < 1:
            key = f"hydra.launcher.{name}"
            raise ConfigError(f"{key} must be a whole number of at least 1, got {value!r}")
    if device.startswith("cuda:"):
        raise ConfigError(
            "trainer.device must be auto, cpu or cuda with hydra/launcher=local, which gives each "
            f"run a GPU of those in CUDA_VISIBLE_DEVICES, got {device}"
        )
    gpus = [] if device == "cpu" else visible_gpus()
    shared = {PER_GPU: str(per_gpu)}
    found = [{"CUDA_VISIBLE_DEVICES": gpu, **shared} for gpu in gpus] * per_gpu or [{}] * n_jobs
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, processes.cores() // len(found)))
    return [slot | {"OMP_NUM_THREADS": threads} for slot in found]


def launch(
    config: Any, jobs: list[tuple[int, list[str]]], slots: list[dict[str, str]], task, context
) -> list[Any]:
    """Runs Hydra's jobs, numbers with their overrides; returns its `JobReturn` of each."""
    from hydra.core.utils import JobReturn, JobStatus

    from sdnet.config.errors import RunError
    from sdnet.launch.sweep_plan import composed_as

    def calls():
        for number, overrides in jobs:
            composed = context.config_loader.load_sweep_config(config, overrides)
            _, folder = composed_as(composed, number)
            yield str(folder), (_run_job, task, composed, context)

    returns = []
    for (_, overrides), answer in zip(jobs, run_in_slots(calls(), slots), strict=True):
        if isinstance(answer, Ended):
            answer = JobStatus.FAILED, RunError(str(answer))
        returns.append(JobReturn(overrides, status=answer[0], _return_value=answer[1]))
    return returns


def _run_job(task, composed: Any, context: Any) -> tuple[Any, Any]:
    """The part of it in the run's process; an error comes back as one that any process knows."""
    from hydra.core.utils import JobRuntime, JobStatus, run_job, setup_globals

    from sdnet.config.errors import ConfigError, RunError

    setup_globals()
    JobRuntime.instance().set("name", composed.hydra.job.name)
    done = run_job(
        task_function=task,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    answer = done._return_value
    if done.status == JobStatus.FAILED:
        kind = next((k for k in (RunError, ConfigError) if isinstance(answer, k)), None)
        text = str(answer) if kind else f"{type(answer).__name__}: {answer}"
        answer = (kind or RuntimeError)(text[:MOST])
    return done.status, answer


class Ended(Exception):
    """How a process ended that has not answered."""


def run_in_slots(
    calls: Iterable[tuple[str, tuple]], slots: list[dict[str, str]]
) -> list[Any | Ended]:
    """Calls functions, each in a process of its own, as many at once as there are slots.

    ^C and SIGTERM are handed on, once, to the processes, which are waited for; a second one kills
    them.

    Args:
        calls: what it is called in messages, with (function, *arguments).
        slots: variables for the environment of each process that is at work.

    Returns:
        What each function returned, in their order.
    """
    from hydra.core.utils import env_override

    answers: dict[int, Any] = {}
    free, running = list(slots), {}
    left = enumerate(calls)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        while True:
            for number, (name, call) in _while_any(free, left):
                slot = free.pop(0)
                with env_override(slot):
                    process, answer = _start(call)
                running[process] = (number, name, slot, answer)
            if not running:
                return [answers[number] for number in sorted(answers)]
            wait([process.sentinel for process in running], LOOK_SECONDS)
            for process in [p for p in running if p.exitcode is not None]:
                number, name, slot, answer = running.pop(process)
                answers[number] = _received(process.exitcode, answer)
                free.append(slot)
                if isinstance(answers[number], Ended):
                    log.error("%s: %s; the sweep goes on", name, answers[number])
    except KeyboardInterrupt:
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        for process in running:
            process.join()
        raise
    finally:
        for process in running:
            process.kill()
        signal.signal(signal.SIGTERM, before)


def _while_any(free: list, items: Iterator) -> Iterator:
    while free and (item := next(items, None)):
        yield item


def _stop(number, frame):
    raise processes.Stopped(number)


def _start(call: tuple) -> tuple[Any, Connection]:
    reader, writer = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_work, args=(pickle.dumps(call), writer))
    # A sweep in the background of a script ignores ^C, which a process would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    writer.close()
    return process, reader


def _work(call: bytes, answer: Connection) -> None:
    """A process from its beginning to its end."""
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's ^C is for the sweep, which hands it on
    processes.end_with_parent(signal.SIGINT)  # saved before
    try:
        function, *arguments = pickle.loads(call)
        answer.send(function(*arguments))
    except KeyboardInterrupt as stopped:
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))


def _received(status: int, answer: Connection) -> Any | Ended:
    with answer, suppress(EOFError):
        if answer.poll():
            return answer.recv()
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return Ended(f"its process ended ({how})")
