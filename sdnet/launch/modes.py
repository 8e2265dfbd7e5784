"""What `python -m sdnet evaluate` does of a network beside full depth, one mode for each option."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdnet.analysis.probes import figures
from sdnet.analysis.probes.averages import compare, monte_carlo
from sdnet.analysis.probes.corruptions import corruptions
from sdnet.analysis.probes.lesions import lesion_sets, lesions, reorder
from sdnet.analysis.probes.recalibration import recalibrate
from sdnet.analysis.probes.removal import pareto, truncate
from sdnet.analysis.probes.subject import Subject
from sdnet.config.errors import ConfigError

log = logging.getLogger("sdnet")
Rows = list[dict[str, Any]]
Tables = dict[str, Rows]  # by the names of their files
Named = Mapping[str, Tables]  # of several runs or groups, by what a figure calls them


@dataclass(frozen=True)
class Mode:
    """An option: what it computes, and what it draws.

    Attributes:
        compute: from a network, the option's number (0 where it has none) and the seed.
        draw: figures of tables into a folder.
    """

    compute: Callable[[Subject, int, int], Tables]
    draw: Callable[[Named, figures.About, Path], None]


def _figure(table: str, plot: Callable[..., Path]) -> Callable[[Named, figures.About, Path], None]:
    """The drawing of one table, which is the name of its file too."""

    def draw(named: Named, about: figures.About, out: Path) -> None:
        plot({name: tables[table] for name, tables in named.items()}, about, out / table)

    return draw


def _sets(subject: Subject, n: int, seed: int) -> Tables:
    tables = {"lesion_sets": lesion_sets(subject, n, seed)}
    try:
        return tables | {"order": reorder(subject, n, seed)}
    except ConfigError as error:  # not for every network
        log.warning("%s", error)
        return tables


def _plot_sets(named: Named, about: figures.About, out: Path) -> None:
    sets = {name: tables["lesion_sets"] for name, tables in named.items()}
    orders = {name: tables["order"] for name, tables in named.items() if "order" in tables}
    figures.plot_sets(sets, orders, about, out / "lesion_sets")


def _monte_carlo(subject: Subject, n: int, seed: int) -> Tables:
    found = {
        "full depth": subject.predict("test"),
        "random gates": monte_carlo(subject, n, seed),
    }
    return {"monte_carlo": compare(found)}


def _plot_averages(named: Named, about: figures.About, out: Path) -> None:
    several = len(named) > 1
    rows = [
        row | {"name": f"{name}: {row['name']}" if several else row["name"]}
        for name, tables in named.items()
        for row in tables["monte_carlo"]
    ]
    title = "" if several else next(iter(named))
    figures.plot_averages(rows, title, about, out / "monte_carlo")


MODES: dict[str, Mode] = {
    "lesion": Mode(
        lambda subject, n, seed: {"lesion": lesions(subject)},
        _figure("lesion", figures.plot_lesions),
    ),
    "lesion_pairs": Mode(_sets, _plot_sets),
    "truncate": Mode(
        lambda subject, n, seed: {"truncation": truncate(subject)},
        _figure("truncation", figures.plot_truncation),
    ),
    "pareto": Mode(
        lambda subject, n, seed: {"pareto": pareto(subject, most_images=n or None, seed=seed)},
        _figure("pareto", figures.plot_pareto),
    ),
    "monte_carlo": Mode(_monte_carlo, _plot_averages),
    "recalibrate_bn": Mode(
        lambda subject, n, seed: {"recalibration": recalibrate(subject)},
        lambda named, about, out: None,  # four numbers need no figure
    ),
    "corruptions": Mode(
        lambda subject, n, seed: {"corruptions": corruptions(subject, seed)},
        _figure("corruptions", figures.plot_corruptions),
    ),
}
