"""The command `python train.py`: its errors and its exit status."""

import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sdnet import config as configs
from sdnet import sweep
from sdnet.training import distributed


def run_command(main: Callable[[], Any]) -> None:
    """Calls a Hydra main so that a user's mistake ends in one message and exit status 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if not full and not distributed.is_main():  # the first process says what there is to say
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on to us
    configs.register_presets()
    sweep.Callback.task = staticmethod(main.__wrapped__)
    try:
        status = _status_of(main)
    except (HydraException, OmegaConfBaseException) as error:
        if full:
            raise
        status = f"error: {configs.explain(error)}"
    except KeyboardInterrupt:
        status = 130
        if sweep.Callback.started:
            print("the sweep was stopped; the same command continues it")
    except Exception as error:
        if not distributed.is_main():
            print(f"error on rank {distributed.environment()[0]}: {error}", file=sys.__stderr__)
        if full or sweep.Callback.left_to_sweeper is None:
            raise
        status = f"error: the sweeper gave up: {error}"  # e.g. optuna, when every trial failed
    if sweep.Callback.left_to_sweeper is not None and status != 130:
        failed = sweep.conclude_folder(*sweep.Callback.left_to_sweeper)
        status = status if isinstance(status, str) else max(status, failed)
    sys.exit(status)


def _status_of(main: Callable[[], Any]) -> int:
    try:
        main()
    except sweep.Ended as ended:
        if ended.__cause__ is not None:
            raise ended.__cause__ from None
        return ended.status
    return 0
