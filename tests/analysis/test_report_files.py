"""The command, what it writes, and what it makes of folders that are not as they should be."""

import csv
import re
import shutil

import pytest
import yaml
from markdown_it import MarkdownIt

from sdnet.__main__ import main
from sdnet.analysis.report import ReportError
from sdnet.runs.shown import visible
from tests import commands
from tests.analysis.report_runs import CONSTANT, UNIFORM, Html, cells_of, change, report, write_run
from tests.commands import Forked


def test_the_command(sweep, tmp_path):
    def command(*arguments):
        process = Forked(tmp_path, {}, commands.module, "sdnet", *arguments)
        return *process.communicate(timeout=60), process.returncode

    (sweep / "uniform-1" / "summary.json").write_text('{"status": "failed", "reason": "why"}')
    out, err, status = command("report", "sweep")
    assert status == 0, err
    assert "uniform-1: failed: why" in out and "7 runs in 3 rows" in out
    assert (sweep / "report" / "report.csv").is_file() and (sweep / "report" / "p_L.pdf").is_file()
    assert command("report", "nowhere") == ("", "error: nowhere is not a folder\n", 1)


def test_mistakes_and_nothing_to_report_exit_with_1(tmp_path, capsys):
    assert main([]) == 0 and "report" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 1
    assert f"error: {tmp_path} holds no runs" in capsys.readouterr().err
    write_run(tmp_path / "a", summary={"status": "failed", "reason": "why"})
    assert main(["report", str(tmp_path)]) == 1
    assert "a: failed: why" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()


WRONG = {  # by file and place, the values that no run of ours leaves there
    ("config.yaml", "seed"): ["zz", None, [], 1.5, True],
    ("config.yaml", "model"): [None, [1], "x", {}, {"_target_": 7}],
    ("config.yaml", "schedule"): [None, {"name": "x"}, {"_target_": []}],
    ("config.yaml", "trainer"): [None, {}],
    ("config.yaml", "dataset"): [7],
    ("summary.json", "test_error"): ["x", -1, [], True, float("nan"), 10**400],
    ("summary.json", "seconds_per_epoch"): ["x", 0, float("inf")],
    ("summary.json", "blocks"): ["x", 0, {}],
    ("summary.json", "other_load"): ["x", []],
    ("summary.json", "training_macs"): ["x", 10**400],
    ("summary.json", "epochs"): [0, "x"],
    ("summary.json", "selection"): [None, 7],
    ("summary.json", "status"): [None, [], {}],
    ("provenance.json", "overrides"): [7, [7]],
    ("provenance.json", "resumed"): [7, [7]],
    ("provenance.json", "program"): [7, [7]],
    ("provenance.json", "git_commit"): [7],
}


def test_a_broken_run_is_left_out_and_costs_no_other(tmp_path):
    sound = write_run(tmp_path / "all" / "sound")
    broken = tmp_path / "all" / "broken"
    for (file, key), values in WRONG.items():
        for value in values:
            change(write_run(broken, 1, schedule=UNIFORM), file, **{key: value})
            result, printed = report(tmp_path / "all")
            assert [run.folder for run in result.runs] == [sound], (file, key, value)
            (left,) = result.left_out
            assert left.folder == broken and left.reason.startswith(("unreadable", "unfinished"))
            assert f"{broken}: {left.reason}" in printed and "\n" not in left.reason
            shutil.rmtree(broken)
    for cell in ("x", "", "nan", "inf"):  # of an epoch
        write_run(broken, 1)
        lines = (broken / "metrics.csv").read_text().splitlines()
        changed = [lines[0], *(line.replace(line.split(",")[0], cell, 1) for line in lines[1:])]
        (broken / "metrics.csv").write_text("\n".join(changed) + "\n")
        assert [item.folder for item in report(tmp_path / "all")[0].left_out] == [broken]
        shutil.rmtree(broken)


HOSTILE = [
    *(
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3",
        "@SUM(1)",
        "<script>alert(1)</script>",
        "[red]x[/blue]",
    ),
    *(
        "[x](http://y)",
        "![x](y)",
        "`x` **y** _z_ ~~a~~",
        "# x",
        ":warning:",
        "\x1b[2J\x07",
        "a\r\nb",
    ),
    *("\u202egnp", "a|b", "&lt;", "$\\frac{x$", "a$b$c"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_run_is_called_is_text_wherever_it_is_reported(tmp_path, text):
    hostile = UNIFORM | {"name": text, "rule": text}
    write_run(tmp_path / "sound", schedule=CONSTANT, trainer__x=text)
    (
        write_run(tmp_path / "kept", 1, schedule=CONSTANT, trainer__x=text) / "predictions.npz"
    ).touch()
    write_run(tmp_path / "named", 1, schedule=hostile, summary={"selection": text}, trainer__x=text)
    write_run(
        tmp_path / f"`{text.replace('/', '')}`", 2, summary={"reason": text, "status": "failed"}
    )
    result, printed = report(tmp_path)
    assert len(result.runs) == 3 and len(result.left_out) == 1
    shown = visible(text)
    assert shown in printed and printed.replace("\n", "").isprintable()

    with (tmp_path / "report" / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [cell for row in rows for cell in row.values()]
    assert ("'" if shown[0] in "=+-@" else "") + shown in cells
    assert not any(re.match(r"[=+@\t\r]|-(?![\d.]+$)", cell) for cell in cells)

    page = (tmp_path / "report" / "report.md").read_text()
    assert page.replace("\n", "").isprintable()
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "strong_open"}
    assert sum(token.type == "heading_open" for token in tokens) == 6
    assert shown in {child.content for child in inline} and len(rows[0]) > 20

    html = Html((tmp_path / "report" / "report.html").read_text())
    assert html.tags <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "div"),
        *("table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "pre", "img"),
    }
    assert html.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class"}
    assert shown in {cell for row in html.rows for cell in row}


def test_the_page_has_the_table_and_the_figures_in_one_file(sweep, tmp_path, monkeypatch):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    monkeypatch.setattr("sdnet.analysis.figures.draw", lambda *arguments: [picture])
    _, printed = report(sweep)
    page = (sweep / "report" / "report.html").read_text()
    parts = (
        "<h1>",
        "<table>",
        "<img",
        "<h2>Difference: ",
        "<h2>Commands",
        "<h2>Settings of all rows",
    )
    places = [page.index(part) for part in parts]
    assert places == sorted(places)  # the longest comes last
    html = Html(page)
    assert {row[0]: row[1:] for row in html.rows[1:]} == cells_of(printed)
    assert html.sources == ["data:image/png;base64,iVBORw=="]  # nothing is fetched


def test_runs_that_say_nothing_of_wandb_are_reported_without_it(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["wandb"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["report", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path / "\x1b[2J")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/\\x1b[2J is not a folder\n"


def test_a_folder_that_cannot_be_written_is_named(sweep, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ReportError, match=r"file/out cannot be written \(Not a directory\): --out "
    ):
        report(sweep, out=tmp_path / "file" / "out")
    for place in (sweep / "report", sweep / "report" / "wandb"):
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(tmp_path)
        with pytest.raises(ReportError, match="report is a link, or wandb in it: --out names"):
            report(sweep)
        place.unlink()
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "sweep"}
