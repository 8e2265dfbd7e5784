"""The report as a page: one file of HTML, with its figures inside, that fetches nothing."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #8886; --faint: #8882 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left }
td { white-space: nowrap }
tbody tr:hover { background: var(--faint) }
img { max-width: 100%; background: white; border-radius: 4px }
pre { background: var(--faint); padding: .5rem; overflow-x: auto; border-radius: 4px }
"""
# Nothing is fetched and nothing runs, whatever a run is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    title: str,
    above: Sequence[str],
    printed: Sequence[Mapping[str, str]],
    notes: Sequence[str],
    figures: Sequence[Path],
    sections: Iterable[tuple[str, Sequence[str]]],
    commands: Mapping[str, str],
    settings: Sequence[str],
) -> str:
    """A report in HTML; every text is shown as it is.

    Args:
        above, notes: lines above and below the table.
        printed: the rows of the table.
        sections: lists of lines, each with its title.
        commands: what to type for a row, by what it is called.
        settings: those of all rows.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        *_list(above),
        '<div class="wide"><table><thead>',
        _row("th", printed[0]),
        "</thead><tbody>",
        *(_row("td", row.values()) for row in printed),
        "</tbody></table></div>",
        *_list(notes),
    ]
    parts += ["<h2>Figures</h2>"] if figures else []
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(f'<p><img alt="{_text(path.stem)}" src="data:image/png;base64,{data}"></p>')
    for head, lines in sections:
        parts += [f"<h2>{_text(head)}</h2>", *_list(lines)]
    parts += ["<h2>Commands</h2>"]
    for name, command in commands.items():
        parts.append(f"<p>{_text(name)}</p><pre>{_text(command)}</pre>")
    parts += ["<h2>Settings of all rows</h2>", *_list(settings)] if settings else []
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _list(lines: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{_text(line)}</li>" for line in lines), "</ul>"] if lines else []


def _text(text: str) -> str:
    return html.escape(text)


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"
