"""What happened in each block of a run: `telemetry.csv`, a row per evaluation and branch.

step epoch       of the evaluation; what follows is of the steps since the one before
block name stage of the branch; block 0 is the whole network
survival         p_l
realised         share of images, or of steps, in which the branch took part
gradient_mean    mean absolute gradient of the branch's first convolution or matrix, and
gradient_norm    its Euclidean norm; means over the steps in which it took part
weight_norm      of all parameters of the branch, at the end
update_norm      of how far they moved
direction_variance alignment   of mini-batches' gradients, where they were asked for
"""

import csv
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdnet.runs.files import Damaged, write_atomically

log = logging.getLogger("sdnet")
COLUMNS = (
    *("step", "epoch", "block", "name", "stage", "survival", "realised"),
    *("gradient_mean", "gradient_norm", "weight_norm", "update_norm"),
    *("direction_variance", "alignment"),
)
MEASURES = COLUMNS[6:]
NUMBERS = ("epoch", "survival", *MEASURES)


def read_telemetry(path: Path) -> list[dict[str, Any]]:
    """The rows as numbers, None where a cell is empty; no rows where there is no such file.

    Raises:
        Damaged: it is not what was written.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row |= {name: float(row[name]) if row[name] else None for name in NUMBERS}
            row |= {name: int(row[name] or 0) for name in ("step", "block", "stage")}
            if row["step"] < 1 or None in row:  # a cell too many
                raise ValueError(f"of a step {row['step']}")
    except (ValueError, KeyError, OSError, csv.Error) as error:
        raise Damaged(f"{path.name} cannot be read: {error}") from error
    return rows


def add_telemetry(path: Path, added: Sequence[dict[str, Any]]) -> None:
    """Adds the rows of an evaluation in the place of those of its step and later ones."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    try:
        before = read_telemetry(path)
    except Damaged as error:
        aside = path.with_name(f"{path.name}.damaged")
        log.warning("%s: it is now %s, and begins anew", error, aside.name)
        os.replace(path, aside)
        before = []
    kept = [row for row in before if row["step"] < added[0]["step"]]
    for row in (*kept, *added):
        cells = {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()}
        writer.writerow(cells)
    write_atomically(path, text.getvalue())
