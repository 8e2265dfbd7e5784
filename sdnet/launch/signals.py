"""What a signal does to a run: it is saved, or stopped once it is."""

import signal
from contextlib import contextmanager

from sdnet.processes import WARNINGS, Stopped
from sdnet.training.counters import Interrupted
from sdnet.training.trainer import Trainer


@contextmanager
def stop_on_signal(trainer: Trainer):
    """The first Ctrl-C or SIGTERM ends the run after the step at hand; a second one at once.

    Where handlers for SIGUSR1 or SIGUSR2 are installed, submitit is there, which Slurm warns in
    this way of a time limit or a preemption: then that signal ends the run, and `hand_over` calls
    the handler once everything is saved. SIGTERM comes before it, or alone; it only saves there.
    Where there is no handler, SIGUSR1 and SIGUSR2 save, and the run goes on.

    One of several processes may get a signal twice, from whoever started them and from a scheduler:
    there a second one is no haste. torchrun kills what has not ended after 30 seconds.
    """

    def stop(number, frame):
        trainer.stop_requested, trainer.stop_signal = True, number
        if number not in warnings and trainer.world.size == 1:
            signal.signal(number, at_once)

    def at_once(number, frame):
        raise Stopped(number)

    def save(number, frame):
        trainer.save_requested = True

    warnings = [number for number in WARNINGS if callable(signal.getsignal(number))]
    handlers = dict.fromkeys(WARNINGS, save) | dict.fromkeys((signal.SIGINT, *warnings), stop)
    handlers[signal.SIGTERM] = save if warnings else stop
    hangup = getattr(signal, "SIGHUP", None)  # the terminal is gone; nohup has it ignored
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        handlers[hangup] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if trainer.world.size > 1:  # torchrun sends it when one process ends before another
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def hand_over(interrupted: Interrupted) -> None:
    """Calls the handler for the signal that ended a run: submitit's requeues the job and exits."""
    if interrupted.number in WARNINGS:
        signal.getsignal(interrupted.number)(interrupted.number, None)
