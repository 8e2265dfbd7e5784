"""Run folders as a training leaves them, and what a report of them says."""

import copy
import csv
import json
import math
import os
from html.parser import HTMLParser

import yaml
from rich.console import Console

from sdnet.analysis.report import write_report

T_975 = {1: 12.706205, 2: 4.302653}  # Student's t by degrees of freedom, from a table
LINEAR = {"_target_": "sdnet.models.schedules.LinearDecay", "name": "linear_decay"}
LINEAR |= {"p_L": 0.5, "p_0": 1.0, "rule": "paper"}
UNIFORM = {"_target_": "sdnet.models.schedules.Uniform", "name": "uniform", "p_L": 0.5}
CONSTANT = {"_target_": "sdnet.models.schedules.Constant", "name": "constant"}
RULE = "lowest validation error, the latest of equals"
COLUMNS = "epoch,step,lr,train_loss,train_error,val_loss,val_error,test_loss,test_error"
COLUMNS += ",train_seconds,eval_seconds,images_per_second,active_blocks"
CONFIG = {
    "model": {
        "_target_": "sdnet.models.resnet.resnet_cifar",
        "name": "resnet20",
        "depth": 20,
        "block": {"_target_": "sdnet.models.blocks.BasicBlock", "_partial_": True},
        "granularity": "batch",
    },
    "dataset": {"_target_": "sdnet.data.sources.digits", "name": "digits", "root": "data"},
    "schedule": LINEAR,
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "skipped_update": "decay"},
    "lr_schedule": {"_target_": "sdnet.training.optim.MultiStep", "milestones": [0.5, 0.75]},
    "trainer": {"epochs": 3, "batch_size": 128, "threads": 1},
    "wandb": {"mode": "disabled"},
    "name": "digits",
    "seed": 0,
}


def survival(schedule, blocks):
    p = schedule.get("p_L", 1.0)
    if "LinearDecay" not in schedule["_target_"]:
        return [p] * blocks
    return [1 - l / blocks * (1 - p) for l in range(1, blocks + 1)]


def write_run(
    folder, seed=0, errors=((9, 8), (4, 5), (6, 7)), summary=None, where=None, **settings
):
    """A run folder as train.py leaves it.

    `errors` are validation and test error by epoch, `settings` those that differ from CONFIG
    (`model__depth=8`), `summary` and `where` are changes of summary.json and provenance.json.
    """
    config = copy.deepcopy(CONFIG) | {"seed": seed}
    for key, value in settings.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [
        f"{epoch},{11 * epoch},0.1,{2 / epoch},50,1,{val},1,{test},{epoch},0.1,900,6.5"
        for epoch, (val, test) in enumerate(errors, start=1)
    ]
    (folder / "metrics.csv").write_text("\n".join([COLUMNS, *lines]) + "\n")
    lowest = min(val for val, _ in errors)
    best = max(i for i, (val, _) in enumerate(errors) if val == lowest)
    blocks = (config["model"]["depth"] - 2) // 2
    active = sum(survival(config["schedule"], blocks))
    result = {
        "status": "completed",
        "best_epoch": best + 1,
        "val_error": lowest,
        "test_error": errors[best][1],
        "final_test_error": errors[-1][1],
        "selection": RULE,
        "train_seconds": 300.0 + seed,
        "seconds_per_epoch": 10.0 + seed,
        "expected_active_blocks": active,
        "mean_active_blocks": active if active == blocks else active + 0.1,
        "blocks": blocks,
        "other_load": 0.1,
    }
    (folder / "summary.json").write_text(json.dumps(result | (summary or {})))
    overrides = [f"schedule={config['schedule']['name']}", f"seed={seed}", "retry_failed=true"]
    provenance = {"overrides": overrides, "git_commit": "0123456789abcdef", "git_dirty": False}
    provenance |= {"device": "cpu", "device_name": "CPU X", "threads": 1}
    (folder / "provenance.json").write_text(json.dumps(provenance | (where or {})))
    return folder


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def by_hand(folder):
    """The reported test error: at the epoch of lowest validation error, the latest of equals."""
    rows, best = metrics(folder), None
    for row in rows:
        if best is None or row["val_error"] <= best["val_error"]:
            best = row
    return best["test_error"]


def mean_std(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def report(*folders, **options):
    """The report and what it printed, on a console that is none."""
    console = Console(file=open(os.devnull, "w"), record=True, width=80)  # noqa: SIM115
    result = write_report(folders, console=console, **options)
    return result, console.export_text()


def rows_of(result):
    return {row["id"]: row for row in result.table.to_dict("records")}


def row_with(result, **values):
    (row,) = (
        row
        for row in result.table.to_dict("records")
        if all(row[k.replace("__", ".")] == v for k, v in values.items())
    )
    return row


def cells_of(printed):
    """The cells in printed tables by their first one."""
    cells = {}
    for line in printed.splitlines():
        if line.startswith("│"):
            first, *others = (cell.strip() for cell in line.split("│")[1:-1])
            cells.setdefault(first, []).extend(others)
    return cells


def change(run, file, **values):
    text = (run / file).read_text()
    content = yaml.safe_load(text) if file.endswith("yaml") else json.loads(text)
    content |= values
    dump = yaml.safe_dump if file.endswith("yaml") else json.dumps
    (run / file).write_text(dump(content))


class Html(HTMLParser):
    """The tags and attributes of a page, and the cells of its table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.sources = set(), set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data.strip("\n")
