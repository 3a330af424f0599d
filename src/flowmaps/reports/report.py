"""The report of a run, `report.html`: one page with its pictures inside, that loads nothing from anywhere."""

from __future__ import annotations

import base64
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..system.files import write_atomically
from .tables import Row, columns_of


def provenance(config: Mapping[str, Any]) -> dict[str, str]:
    """How a report was made: command, version, seed, time and machine."""
    try:
        own = version("flowmaps")
    except PackageNotFoundError:  # run from the source tree
        own = "source tree"
    machine = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    )
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    name = Path(sys.argv[0]).name
    command = shlex.join([*(["python", "-m", "flowmaps"] if name == "__main__.py" else [name]), *sys.argv[1:]])
    return {
        "command": command,
        "flowmaps": own,
        "torch": f"{torch.__version__}, Python {platform.python_version()}",
        "seed": str(config.get("seed", "not set")),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "machine": machine,
    }


def write(
    folder: str | os.PathLike[str],
    title: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    figures: Mapping[str, str | os.PathLike[str]],
    *,
    notes: Sequence[str] = (),
    changes: Sequence[Sequence[str]] = (),
) -> Path:
    """Write `report.html` into a folder: one page with its pictures inside, that loads nothing from anywhere.

    Args:
        folder: of the run; it must exist. An old report is replaced in one stroke, and kept if anything fails.
        title: of the page.
        config: option of the run -> value; "seed" is also shown under how it was made.
        rows: of `metrics.json`.
        figures: caption -> PNG file, in the order of display.
        notes: paragraphs above the table.
        changes: what the recipe changes of its methods' own defaults: stage, option, default, and value here.

    Returns:
        The path of the report.

    Raises:
        OSError: a PNG file cannot be read, or the folder not written.
        ValueError: a file of `figures` is no PNG.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        *(["<h2>Results</h2>", _results(rows)] if rows else []),
        *(["<h2>Pictures</h2>"] if figures else []),
        *(_figure(caption, Path(path)) for caption, path in figures.items()),
        "<h2>How it was made</h2>",
        _pairs(provenance(config)),
        *(["<h2>What this recipe sets differently from its methods</h2>", _changes(changes)] if changes else []),
        *(["<h2>Configuration</h2>", _pairs(config)] if config else []),
    ]
    return write_atomically(Path(folder) / "report.html", _page(escape(title), "\n".join(parts)))


def _page(title: str, body: str) -> str:
    """The whole page; the policy in its head forbids a browser to load anything for it."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def _results(rows: Sequence[Row]) -> str:
    """The table of results and what its columns mean."""
    columns = columns_of(rows)
    units = [f"<small>{escape(column.unit)}</small>" if column.unit else "" for column in columns]
    head = "".join(f"<th>{escape(column.heading)}{unit}</th>" for column, unit in zip(columns, units, strict=True))
    body = "".join(
        f'<tr class="{"map" if row.get("sampler") == "map" else "other"}">'
        + "".join(f"<td>{escape(column.show(row))}</td>" for column in columns)
        + "</tr>\n"
        for row in rows
    )
    meanings = "".join(f"<dt>{escape(c.heading)}</dt><dd>{escape(c.meaning)}</dd>\n" for c in columns)
    return f"""<div class="wide"><table class="results"><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>
<details open><summary>What the columns mean</summary><dl>
{meanings}</dl></details>"""


def _figure(caption: str, path: Path) -> str:
    """A picture inside the page, with its caption."""
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"a report embeds PNG files, got {path}: save figures with flowmaps.reports.figures.save.")
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return f'<figure><img alt="{escape(caption)}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>'


def _pairs(pairs: Mapping[str, Any]) -> str:
    """Names and values as a table of two columns."""
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>\n" for k, v in pairs.items())
    return f'<div class="wide"><table class="pairs">{rows}</table></div>'


def _changes(changes: Sequence[Sequence[str]]) -> str:
    """The options that a recipe sets to other values than the functions of `flowmaps.methods` have."""
    head = "".join(f"<th>{name}</th>" for name in ("stage", "option", "default", "here"))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in changes)
    return f'<div class="wide"><table class="pairs"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --faint: #59636e; --rule: #d8dee4; --ground: #ffffff;
  --band: #f4f6f8; --map: #1f6feb }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9aa5b1; --rule: #30363d; --ground: #0f141a;
  --band: #171d25; --map: #79b0ff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .75rem }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule) }
p { max-width: 46rem; margin: .5rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
.results { width: 100% }
.results th, .results td { padding: .42rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule) }
.results th { vertical-align: bottom; font-weight: 600 }
.results th small { display: block; font-weight: 400; color: var(--faint) }
.results th:first-child, .results td:first-child { text-align: left }
.results tr.map td:first-child { color: var(--map); font-weight: 600 }
.results tbody tr:hover { background: var(--band) }
details { margin: .75rem 0; font-size: .9rem; color: var(--faint) }
summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .6rem 0 }
dt { font-weight: 600; color: var(--ink) }
dd { margin: 0 }
figure { margin: 1.25rem 0 2rem }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; padding: .6rem; background: #ffffff;
  border: 1px solid var(--rule); border-radius: 8px }
figcaption { margin-top: .5rem; color: var(--faint); font-size: .9rem; text-align: center }
.pairs th { text-align: left; font-weight: 500; color: var(--faint); padding: .2rem 1.5rem .2rem 0;
  vertical-align: top; white-space: nowrap }
.pairs td { padding: .2rem 1.5rem .2rem 0; font: .85rem ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  overflow-wrap: anywhere }
"""
