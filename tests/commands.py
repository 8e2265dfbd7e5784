"""`python train.py ...` in a process of its own, forked from one that has the libraries loaded.

Such a process is a command in every respect but its start: it has a folder, an environment, a
process id, signals and an exit status of its own, and imports sdnet itself. It begins in a tenth of
a second where a new interpreter needs five.
"""

import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = [
    *("torch", "torch._dynamo", "torch.distributed", "torchvision.datasets", "torchvision.models"),
    *("torchvision.transforms.v2", "hydra", "omegaconf", "rich.progress", "rich.table"),
    *("numpy", "pandas", "scipy.stats", "scipy.io", "sklearn.datasets", "sklearn.model_selection"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "PIL.Image", "psutil", "yaml"),
    *("wandb", "pytest", "timm"),
]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the process that the others are forked from
FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(PRELOADED)


def environment(**variables: str) -> dict[str, str]:
    """That of a user without an account, on one thread."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    return kept | {"NETRC": os.devnull, "OMP_NUM_THREADS": "1"} | variables


class Forked:
    """A function in a process of its own, with the methods of `subprocess.Popen` that tests need.

    Args:
        folder: the current one there.
        variables: more for its environment.
    """

    def __init__(self, folder: Path | str, variables: dict[str, str], function: Callable, *args):
        self.args = args
        self._files = tempfile.TemporaryDirectory()
        self._printed = [Path(self._files.name, name) for name in ("stdout", "stderr")]
        for file in self._printed:
            file.touch()
        given = (folder, environment(**variables), self._printed, function, args)
        self._process = FORKED.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            out, err = self._texts()
            raise AssertionError(f"still running after {timeout} s\n{out}\n{err}")
        return self._texts()

    def _texts(self) -> tuple[str, str]:
        return tuple(file.read_text() for file in self._printed)


def _run(folder, variables, printed, function, args):
    """What a new interpreter would do before and after, in the forked process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where these tests ignore it
    for stream, path in zip((1, 2), printed, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    status = 0
    try:
        function(*args)
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def train(*arguments: str) -> None:
    """`python train.py <arguments>`."""
    sys.argv = [str(ROOT / "train.py"), *arguments]
    sys.path[0] = str(ROOT)
    runpy.run_path(sys.argv[0], run_name="__main__")


def module(name: str, *arguments: str) -> None:
    """`python -m <name> <arguments>`."""
    sys.argv = [name, *arguments]
    sys.path[0] = str(ROOT)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def without(package: str, name: str, *arguments: str) -> None:
    """`module` where a package is not installed."""
    sys.modules[package] = None
    module(name, *arguments)


class Together:
    """What torchrun gives two processes that work together: variables, and a store they reach.

    To be kept until they have ended.
    """

    def __init__(self):
        from torch.distributed import TCPStore

        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.variables = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }

    def of(self, rank: int) -> dict[str, str]:
        return self.variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def run_two(folder: Path | str, function: Callable, *args) -> list[tuple[str, str]]:
    """Has two processes work together to a good end; returns what each of them printed."""
    together = Together()
    ranks = [Forked(folder, together.of(rank), function, *args) for rank in range(2)]
    printed = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    return printed
