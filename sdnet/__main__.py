"""`python -m sdnet train ...` trains. `report <folders>` looks at what it left, `wandb <sweep>`
makes a workspace of that, `export <run>` writes a run's network for others."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdnet import processes


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Ends the command where an import fails that another way of installing sdnet would mend."""
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed: pip install '.[{extra}]' in sdnet's clone")


def _report(arguments: argparse.Namespace) -> int:
    with _needs("report"):
        from sdnet.analysis.report import write_report  # pandas and matplotlib: slow
        from sdnet.listeners import wandb as tracking

    from sdnet.runs.shown import visible

    processes.interrupt_as_usual()
    try:
        report = write_report(
            arguments.folders,
            arguments.out,
            arguments.baseline,
            arguments.paper,
            style=arguments.style,
            columns=arguments.columns and arguments.columns.split(","),
        )
        if report is not None:
            tracking.log_report(report, arguments.wandb)
    except ValueError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 1
    return 0 if report is not None else 1


def _wandb(arguments: argparse.Namespace) -> int:
    with _needs("workspaces"):
        import wandb_workspaces  # noqa: F401

        from sdnet.analysis.report import write_report
        from sdnet.listeners import wandb as tracking
        from sdnet.listeners import workspace

    from sdnet.runs.shown import visible

    processes.interrupt_as_usual()
    try:
        workspace.check_online()
        report = write_report([arguments.folder])
        if report is None:
            return 1
        tracking.log_report(report, "online")
        print(visible(f"workspace: {workspace.save_workspace(report)}"))
    except ValueError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _export(arguments: argparse.Namespace) -> int:
    with _needs("train"):
        from sdnet.config.errors import ConfigError
        from sdnet.launch.export import export

    from sdnet.runs.shown import visible

    processes.interrupt_as_usual()
    given = (arguments.out, arguments.checkpoint, arguments.format and arguments.format.split(","))
    try:
        export(arguments.run, *given, say=lambda line: print(visible(line)))
    except (ConfigError, ValueError, OSError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdnet", description=__doc__)
    commands = parser.add_subparsers(title="commands")
    commands.add_parser("train", help="train.py from any folder; train --help lists the settings")
    report = commands.add_parser(
        "report",
        help="table and figures over the runs in some folders",
        description="Prints and writes a table (report.csv, report.md, report.html) and figures "
        "over all completed runs below the folders; other runs are listed with the reason.",
    )
    report.add_argument("folders", nargs="+", type=Path, help="searched for runs, e.g. multirun")
    report.add_argument(
        "--baseline",
        metavar="SPEC",
        help="compare with the row of this id, or with the row that has key=value and is equal in "
        "everything else, e.g. schedule.p_L=0.8, model.depth=20, schedule=uniform; "
        "default: schedule=constant",
    )
    report.add_argument("--paper", action="store_true", help="show the paper's results as well")
    report.add_argument(
        "--style",
        choices=("screen", "paper"),
        default="screen",
        help="of the figures; paper: one column wide, type of 8 points",
    )
    report.add_argument(
        "--columns",
        metavar="NAMES",
        help="of the table, separated by commas and without units, e.g. 'test error,schedule.p_L'; "
        "default: those that do not say the same in all rows",
    )
    report.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: report/ in the first folder"
    )
    report.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        help="log table and figures to W&B; default: as the runs were",
    )
    report.set_defaults(command=_report)
    online = commands.add_parser(
        "wandb",
        help="a saved W&B workspace of a sweep: its panels, and the report's table and figures",
        description="Makes the report, logs it to W&B, and saves a workspace of the sweep's group.",
    )
    online.add_argument("folder", type=Path, help="of a sweep, e.g. multirun/figure8")
    online.set_defaults(command=_wandb)
    export = commands.add_parser(
        "export",
        help="a run's network as safetensors, torch.export and ONNX, for those without sdnet",
        description="Writes the network of a run at full depth, survival probabilities folded into "
        "its weights, and export.json, which says what it is. Each file is checked: it gives the "
        "run's logits.",
    )
    export.add_argument("run", type=Path, help="a run folder")
    export.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="best: of the epoch whose test error is the result (default)",
    )
    export.add_argument(
        "--format",
        metavar="NAMES",
        help="of safetensors,pt2,onnx; default: all whose packages are installed",
    )
    export.add_argument("--out", type=Path, metavar="FOLDER", help="default: export/ in the run")
    export.set_defaults(command=_export)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:  # whose arguments are Hydra's
        with _needs("train"):
            from sdnet.launch.command import run_command

        sys.argv[1:] = arguments[1:]
        run_command()
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if "command" not in parsed:
        parser.print_help()
        return 0
    return parsed.command(parsed)


if __name__ == "__main__":
    processes.interrupt_quietly()
    sys.exit(main())
