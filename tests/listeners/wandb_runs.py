"""In the place of W&B's runs, and their settings."""

SETTINGS = {
    "mode": "auto",
    "project": "p",
    "entity": "e",
    "group": "g",
    "name": None,
    "tags": ["t"],
}


class Run:
    """Stands in for a W&B run."""

    def __init__(self, run_id="id000000"):
        self.id = run_id
        self.metrics, self.logged, self.summary, self.ended = [], [], {}, []

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code=None):
        self.ended.append(exit_code)
