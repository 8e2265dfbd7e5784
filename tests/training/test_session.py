import os
import signal
from types import SimpleNamespace

import pytest

from sdnet.training import session
from sdnet.training.distributed import ALONE
from sdnet.training.trainer import Interrupted


@pytest.fixture
def asked():
    """A stand-in for the trainer, and the signals that a launcher's handler was called with."""
    asked_for = dict.fromkeys(("stop_requested", "stop_signal", "save_requested"), False)
    trainer = SimpleNamespace(**asked_for, world=ALONE)
    calls = []
    before = signal.getsignal(signal.SIGUSR2)
    yield trainer, calls
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_to_end_stops_the_run_and_a_second_one_at_once(asked):
    trainer, _ = asked
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), session._stop_on_signal(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        assert trainer.stop_requested and trainer.stop_signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_launchers_warning_stops_the_run_and_is_handed_over_once_it_is_saved(asked):
    trainer, calls = asked
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    with session._stop_on_signal(trainer):
        os.kill(os.getpid(), signal.SIGTERM)  # comes first, or alone: only save
        assert trainer.save_requested and not trainer.stop_requested
        os.kill(os.getpid(), signal.SIGUSR2)
        assert trainer.stop_requested and calls == []
    session.hand_over(Interrupted("stopped", trainer.stop_signal))
    assert calls == [signal.SIGUSR2]
    session.hand_over(Interrupted("stopped", signal.SIGTERM))
    assert calls == [signal.SIGUSR2]
