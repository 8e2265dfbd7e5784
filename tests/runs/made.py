"""A configuration by hand, of which the run folder and its name need no more."""

import copy

CONFIG = {
    "model": {"name": "resnet20", "depth": 20},
    "dataset": {"name": "digits", "root": "data"},
    "schedule": {"_target_": "x.LinearDecay", "name": "linear_decay", "p_L": 0.5},
    "optimizer": {"lr": 0.1},
    "trainer": {"epochs": 30, "device": "cpu", "threads": None, "precision": "fp32"},
    "wandb": {"mode": "auto"},
    "name": "a",
    "seed": 0,
    "resume": None,
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    node = config
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config
