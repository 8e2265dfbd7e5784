import os
import signal
from types import SimpleNamespace

import pytest

from sdnet.launch.signals import hand_over, stop_on_signal
from sdnet.training.counters import Interrupted
from sdnet.training.distributed import ALONE, World


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
    with pytest.raises(KeyboardInterrupt) as raised, stop_on_signal(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        assert trainer.stop_requested and trainer.stop_signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert raised.value.number == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_warning_that_no_launcher_waits_for_saves_and_the_run_goes_on(asked, number, before):
    trainer, _ = asked
    usual = signal.signal(number, before)
    with stop_on_signal(trainer):
        os.kill(os.getpid(), number)
        assert trainer.save_requested and not trainer.stop_requested
    assert signal.getsignal(number) == before
    signal.signal(number, usual)


def test_a_launchers_warning_stops_the_run_and_is_handed_over_once_it_is_saved(asked):
    trainer, calls = asked
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    with stop_on_signal(trainer):
        os.kill(os.getpid(), signal.SIGTERM)  # comes first, or alone: only save
        assert trainer.save_requested and not trainer.stop_requested
        for _ in range(2):  # a second one is no haste
            os.kill(os.getpid(), signal.SIGUSR2)
            assert trainer.stop_requested and calls == []
    hand_over(Interrupted("stopped", trainer.stop_signal))
    assert calls == [signal.SIGUSR2]
    hand_over(Interrupted("stopped", signal.SIGTERM))
    assert calls == [signal.SIGUSR2]


def test_a_signal_finds_the_handlers_that_a_run_alone_or_with_others_needs(asked, monkeypatch):
    trainer, _ = asked
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(n) for n in names]
    with stop_on_signal(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        assert trainer.stop_requested and trainer.stop_signal == signal.SIGINT
        assert not trainer.save_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in names] == before

    trainer.world, trainer.stop_requested = World(0, 2), False
    with stop_on_signal(trainer):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)  # however often
            assert trainer.stop_signal == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    signal.signal(signal.SIGTERM, before[1])
    assert [signal.getsignal(n) for n in names] == before
