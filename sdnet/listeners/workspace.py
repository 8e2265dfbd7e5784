"""A saved W&B workspace of a sweep: its panels, which one would otherwise click together."""

from typing import TYPE_CHECKING, Any

from sdnet.listeners import wandb as tracking
from sdnet.runs.telemetry import MEASURES

if TYPE_CHECKING:
    from sdnet.analysis.report import Report

SECONDS = 60.0  # that W&B has for the workspace
P_L = "schedule.p_L"


def check_online() -> None:
    """Raises a ValueError that says that nothing is sent, where W&B has no credentials or is away.

    It comes before anything else is done.
    """
    try:
        mode = tracking.resolve_mode("online")
    except tracking.Mistake as error:
        why = str(error).partition(";")[0]  # the rest is about runs
        raise ValueError(f"nothing is sent to W&B: {why}") from error
    if mode != "online":
        raise ValueError("nothing is sent to W&B: it cannot be reached")


def save_workspace(report: "Report") -> str:
    """Saves the workspace of the group of a report's runs; returns its address.

    Raises:
        ValueError: the runs have no group, or W&B did not take it.
    """
    settings = tracking.UNKNOWN | report.runs[0].config.get("wandb", {})
    if settings["group"] is None:
        raise ValueError("wandb.group of the runs must be a text for a workspace, got null")
    figures = [path.stem for path in report.figures]
    telemetry = any((run.folder / "telemetry.csv").is_file() for run in report.runs)
    try:
        return tracking.ask(SECONDS, _save, settings, figures, telemetry)
    except tracking.Lost as error:
        raise ValueError(f"W&B did not take the workspace: {error}") from error


def _save(settings: dict[str, Any], figures: list[str], telemetry: bool) -> str:
    import wandb

    tracking.load_settings()  # what W&B says goes to the log
    entity = settings["entity"] or wandb.Api().default_entity
    workspace = make_workspace(settings | {"entity": entity}, figures, telemetry)
    return workspace.save().url


def make_workspace(settings: dict[str, Any], figures: list[str], telemetry: bool) -> Any:
    """The workspace of the runs of a group.

    Args:
        settings: `wandb` of a configuration, with the entity.
        figures: those of the report, by their names.
        telemetry: whether the runs have any.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as spaces
    from wandb_workspaces import expr

    mean = {
        "x": "epoch",
        "groupby": panels.Config(P_L),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    by_p_L = panels.ScatterPlot(
        title="test error against p_L",
        x=panels.Config(P_L),
        y=panels.SummaryMetric("test_error"),
    )
    over_epochs = [
        panels.LinePlot(title="test error by p_L", y=["test_error"], **mean),
        panels.LinePlot(title="training loss by p_L", y=["train_loss"], log_y=True, **mean),
    ]
    media = panels.MediaBrowser(media_keys=[f"figures/{name}" for name in figures])
    table = panels.WeavePanelSummaryTable(table_name="report")
    sections = {"Sweep": [by_p_L, *over_epochs], "Report": [table, media]}
    if telemetry:
        sections["Telemetry"] = [
            panels.LinePlot(title=name, x="epoch", metric_regex=f"telemetry/{name}/.*")
            for name in MEASURES
        ]
    return spaces.Workspace(
        entity=settings["entity"],
        project=settings["project"],
        name=f"sdnet {settings['group']}",
        sections=[spaces.Section(name=n, panels=p, is_open=True) for n, p in sections.items()],
        runset_settings=spaces.RunsetSettings(
            filters=[expr.Metric("Group") == settings["group"]],
            pinned_columns=["summary:test_error", "summary:val_error", f"config:{P_L}"],
        ),
    )
