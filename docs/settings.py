"""Makes docs/settings.md from the comments in conf/: python docs/settings.py"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUPS = {
    "model": "the network",
    "dataset": "the images",
    "schedule": "which block survives with which probability",
    "optimizer": "how weights are updated",
    "lr_schedule": "the factor on the rate over the epochs",
    "trainer": "the loop, and what it runs on",
    "wandb": "Weights & Biases",
    "experiment": "presets over all groups",
    "sweep": "what a multirun sweeps",
    "hydra/launcher": "several runs at once; all but `local` need `requirements-extras.txt`",
    "hydra/sweeper": "how a multirun chooses its runs",
}
HEAD = """# Settings

Made from the comments in `conf/` by `python docs/settings.py`. Every key can be set on the command
line:

```
python train.py model.depth=56 schedule.p_L=0.8     # a value
python train.py dataset=cifar10 schedule=uniform    # another member of a group
python train.py +optimizer.dampening=0.1            # a key that the file has not
python train.py -m schedule.p_L=0.5,0.8             # several values: a sweep
python train.py --help                              # the whole configuration
```

A wrong name or value is one message, before anything is trained.
"""


def page() -> str:
    parts = [HEAD, "## At the top: `conf/config.yaml`\n", _block(ROOT / "conf" / "config.yaml")]
    for group, meaning in GROUPS.items():
        parts.append(f"## `{group}=`: {meaning}\n")
        for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
            parts += [f"`{group}={file.stem}`\n", _block(file)]
    return "\n".join(parts)


def _block(file: Path) -> str:
    return f"```yaml\n{file.read_text().rstrip()}\n```\n"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(page())
