"""The command `python train.py`, or `python -m sdnet train`: its errors and its exit status."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sdnet import processes
from sdnet.config import compose
from sdnet.config.errors import explain
from sdnet.launch.job import job
from sdnet.launch.provenance import remember_command
from sdnet.runs.shown import visible

PACKAGE = Path(__file__).parents[1]
# In a wheel the settings are part of the package; in a checkout they are beside it.
SETTINGS = next(f for f in (PACKAGE / "conf", PACKAGE.parent / "conf") if f.is_dir())


def run_command() -> NoReturn:
    """Composes what was typed and runs it; a user's mistake ends in one message and status 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead.
    """
    processes.interrupt_as_usual()
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if not full and not processes.is_main():  # the first process says what there is to say
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on to us
    remember_command()
    if any(word.startswith("sweep=") and word != "sweep=null" for word in sys.argv[1:]):
        sys.argv.append("hydra.mode=MULTIRUN")  # with or without -m
    compose.register_presets()
    status: int | str = 0
    try:
        hydra.main(version_base="1.3", config_path=str(SETTINGS), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if full:
            raise
        status = f"error: {explain(error)}"
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if not processes.is_main():
            print(f"error on rank {processes.environment()[0]}: {error}", file=sys.__stderr__)
        raise
    sys.exit(visible(status, keep="\n") if isinstance(status, str) else status)
