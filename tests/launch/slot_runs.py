"""What runs in a slot write down; imported by each of their processes, so it is small."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path


def number_of(name: str) -> tuple[str, str]:
    """Returns what its environment says; run 3 is killed, and 6 leaves without a word."""
    number, slot = int(name), os.environ["CUDA_VISIBLE_DEVICES"]
    assert "torch" not in sys.modules  # which is to find the environment as it is
    assert os.getsid(0) == os.getpid()  # a terminal's ^C is for the sweep alone
    mine = Path(f"at-{slot}")
    mine.mkdir()  # fails where another run has the slot
    if number < 3:
        Path(f"begun-{number}").touch()
        wait_for(lambda: len(list(Path().glob("begun-*"))) == 3)  # they are there at once
    if number > 3:
        Path(f"again-{slot}").touch()
        wait_for(Path("again-3").exists)  # the slot of the killed run is used once more
    mine.rmdir()
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 6:
        os._exit(7)
    return slot, os.environ["OMP_NUM_THREADS"]


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def task(cfg) -> float:
    """In the place of a run."""
    if cfg.seed == 1:
        raise ValueError("a fault")
    if cfg.seed == 2:
        from sdnet.config.errors import Busy

        raise Busy("another has it")
    if cfg.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().job.num + cfg.seed / 10


def sleeping(folder: str) -> None:
    """Saves, slowly, when it is asked to stop; where `hurry` is there, it takes a minute."""
    Path(folder, "asleep").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(folder, "asked").touch()
        if Path(folder, "hurry").exists():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(60)
        time.sleep(0.2)
        Path(folder, "saved").touch()
        raise


def several_asleep(*folders: str, background: bool = False) -> None:
    """The process of a sweep whose runs are asleep; `&` in a script has it ignore ^C."""
    from sdnet.launch.local import run_in_slots

    if background:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run_in_slots([(f, (sleeping, f)) for f in folders], [{}] * len(folders))
    except KeyboardInterrupt as stopped:
        for run in multiprocessing.active_children():  # which would be waited for
            run.join(10)
            assert not run.is_alive()
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))
