"""How a run ends: what is its machine's fault, and what is not."""

import errno

import pytest

from sdnet.data.readers import ReadersLost
from sdnet.launch import ending
from sdnet.runs.folder import RunFolder


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(errno.ENOSPC, "no space left"), True),
        (OSError(errno.EROFS, "read-only", "elsewhere"), True),
        (PermissionError(errno.EACCES, "permission denied", "run/metrics.csv"), True),
        (FileNotFoundError(errno.ENOENT, "no such file", "run/checkpoints/.last.pt.0.tmp"), True),
        (FileNotFoundError(errno.ENOENT, "no such file", "images/a/1.png"), False),
        (OSError("something"), False),
        (ValueError("run/x"), False),
        (ReadersLost("killed"), True),
    ],
    ids=str,
)
def test_what_cannot_be_written_into_the_run_folder_is_not_the_configurations_fault(
    error, expected
):
    assert ending.is_the_machines(error, RunFolder("run")) is expected
