"""`python -m sdnet train ...` trains. `report <folders>` looks at what it left, `evaluate` at what
its networks say of each image, `wandb <sweep>` makes a workspace, `export <run>` writes a network.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdnet import processes


@contextmanager
def _needs(extra: str, so: str = "") -> Iterator[None]:
    """Ends the command where an import fails that another way of installing sdnet would mend.

    Args:
        so: what follows from it, which the message begins with.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = f"{so}{error.name} is not installed"
        sys.exit(f"error: {missing}: pip install '.[{extra}]' in sdnet's clone")


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
            columns=None if arguments.columns is None else arguments.columns.split(","),
        )
        if report is not None:
            tracking.log_report(report, arguments.wandb)
    except ValueError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 1
    return 0 if report is not None else 1


def _wandb(arguments: argparse.Namespace) -> int:
    with _needs("workspaces", "nothing is sent to W&B: "):
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


def _evaluate(arguments: argparse.Namespace) -> int:
    with _needs("report"):
        from sdnet.config.errors import ConfigError
        from sdnet.launch.evaluate import evaluate
        from sdnet.launch.modes import MODES

    from sdnet.runs.shown import visible

    processes.interrupt_as_usual()
    chosen = {name: getattr(arguments, name) for name in MODES}
    modes = {name: int(number) for name, number in chosen.items() if number is not None}
    how = {
        name: getattr(arguments, name) for name in ("checkpoint", "device", "batch_size", "images")
    }
    try:
        evaluate(arguments.folders, arguments.out, modes, arguments.seed, **how)
    except (ConfigError, ValueError, OSError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


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
    evaluate = commands.add_parser(
        "evaluate",
        help="errors by class, calibration and figures of runs, from their predictions",
        description="Writes what the networks of all completed runs below the folders say of the "
        "validation and test images into evaluation/ of each, and of several runs one table.",
    )
    evaluate.add_argument("folders", nargs="+", type=Path, help="runs, or folders of runs")
    flag = {"action": "store_const", "const": 0}
    number = {"type": _count, "metavar": "N"}
    for name, options, said in (
        ("--lesion", flag, "each block out in turn"),
        ("--lesion-pairs", number, "N random sets of k blocks out for each k, and N orders"),
        ("--truncate", flag, "the last blocks of each stage out"),
        (
            "--pareto",
            number | {"nargs": "?", "const": 0},
            "blocks out one by one, as validation images choose, of which N are used; default: all",
        ),
        ("--monte-carlo", number, "the mean of N networks whose gates are drawn"),
        ("--recalibrate-bn", flag, "BatchNorm's statistics computed anew at full depth"),
        ("--corruptions", flag, "noise, blur, contrast, pixelation and JPEG"),
        ("--images", number, "of validation and test that these use; default: all"),
        ("--seed", {"type": int, "default": 0}, "of what is random in these; default: 0"),
        ("--checkpoint", {"choices": ("best", "last"), "default": "best"}, "default: best"),
        ("--device", {"default": "auto"}, "where the network is computed; default: auto"),
        ("--batch-size", number, "images at once; default: as the run"),
        ("--out", {"type": Path, "metavar": "FOLDER"}, "default: evaluation/ in the run"),
    ):
        evaluate.add_argument(name, help=said, **options)
    evaluate.set_defaults(command=_evaluate)
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
