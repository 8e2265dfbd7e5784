"""Where there are no Unix signals, users or process groups: a stand-in for Windows and macOS."""

import itertools
import json
import os
import signal
import sys

import pytest
from PIL import Image

from tests import commands
from tests.commands import Forked

# What Windows has not, and for the second line what macOS has not. Python's own libraries need
# others that are missing there, such as SIGCHLD or waitpid, on the system that the test runs on.
SIGNALS = "SIGUSR1 SIGUSR2 SIGHUP SIGQUIT SIGALRM SIGPIPE SIGTSTP pthread_sigmask sigwait setitimer"
SYSTEM = "sysconf setsid fork forkpty getpgid setpgid killpg getuid geteuid nice getloadavg uname "
SYSTEM += "sched_getaffinity sched_setaffinity pidfd_open posix_fadvise memfd_create sendfile"


def train_without_names(*arguments):
    for module, names in ((signal, SIGNALS), (os, SYSTEM)):
        for name in names.split():
            delattr(module, name)
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[name] = None
    for name in [n for n in sys.modules if n.partition(".")[0] == "sdnet"]:
        del sys.modules[name]
    commands.train(*arguments)


def images_in(folder):
    for part, label, i in itertools.product(("train", "test"), "ab", range(8)):
        file = folder / part / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(file)


@pytest.mark.parametrize("dataset", ["digits", "image_folder"])
def test_a_run_needs_no_names_of_unix(tmp_path, dataset):
    images_in(tmp_path / "images")
    typed = ["dataset.size=8", "dataset.validation=1300"]
    if dataset == "image_folder":
        typed = ["dataset.root=images", "dataset.size=8", "dataset.validation=4"]
    typed += [f"dataset={dataset}", "model.depth=8", "trainer.epochs=1", "trainer.batch_size=64"]
    typed += ["trainer.threads=1", "wandb.mode=disabled"]
    process = Forked(tmp_path, {}, train_without_names, *typed)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    (file,) = tmp_path.glob("outputs/*/*/summary.json")
    assert json.loads(file.read_text())["status"] == "completed"
