"""Where there are no Unix signals, users or process groups: a stand-in for Windows and macOS."""

import json
import os
import signal
import sys

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


def test_a_run_needs_no_names_of_unix(tmp_path):
    typed = ["model.depth=8", "dataset.size=8", "dataset.validation=1300", "trainer.batch_size=64"]
    typed += ["trainer.epochs=1", "trainer.threads=1", "wandb.mode=disabled"]
    process = Forked(tmp_path, {}, train_without_names, *typed)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    (file,) = tmp_path.glob("outputs/*/*/summary.json")
    assert json.loads(file.read_text())["status"] == "completed"
