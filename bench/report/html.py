"""Build one self-contained HTML page: figures are embedded, tables sort on a click, nothing is fetched."""

import base64
import hashlib
import html
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report.formatting import visible_columns

GENERATOR = '<meta name="generator" content="deelbo-bench report">'


def document(title: str, *parts: str) -> str:
    """Build the page. Its content policy allows its own script only, whatever text the records contain."""
    assets = files("bench.report") / "assets"
    style, script = ((assets / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{GENERATOR}<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{style}</style></head>
<body>
{"".join(parts)}
<script>{script}</script></body></html>
"""


def is_report(path: Path) -> bool:
    """Return True if a file is a page that `document` built."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return GENERATOR in file.read(1000)


def section(heading: str, *parts: str, level: int = 2) -> str:
    """Build a heading and its content."""
    return f"<h{level}>{html.escape(heading)}</h{level}>\n{''.join(parts)}"


def paragraphs(*texts: str) -> str:
    """Build paragraphs of escaped text."""
    return "".join(f"<p>{html.escape(text)}</p>\n" for text in texts)


def notes(*texts: str) -> str:
    """Build paragraphs in smaller print of escaped text."""
    return "".join(f"<p class=note>{html.escape(text)}</p>\n" for text in texts)


def bullets(texts: Sequence[str]) -> str:
    """Build a list of escaped lines."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>\n"


def pre(text: str) -> str:
    """Build preformatted, escaped text."""
    return f"<pre>{html.escape(text)}</pre>\n"


def details(summary: str, *parts: str) -> str:
    """Build content that opens on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>\n"


def figure(path: Path, alt: str) -> str:
    """Embed a PNG file."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>\n'


def table(content: pd.DataFrame) -> str:
    """Build a table of the visible columns; numbers carry their exact value for sorting."""
    columns = visible_columns(content)
    textual = {name for name, *_ in columns if not pd.api.types.is_numeric_dtype(content[name])}

    def cell(name: str, value: Any, text: str) -> str:
        side = ' class="text"' if name in textual else ""
        key = "" if name in textual or pd.isna(value) else f' data-v="{_javascript_number(value)}"'
        return f"<td{side}{key}>{html.escape(text)}</td>"

    head = "".join(
        f"<th{' class=text' if name in textual else ''}>{html.escape(text)}</th>" for name, text, _ in columns
    )
    body = "".join(
        "<tr>" + "".join(cell(name, row[name], write(row[name])) for name, _, write in columns) + "</tr>"
        for row in content.to_dict("records")
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def _javascript_number(value: Any) -> str:
    number = float(value)
    return f"{'-' * (number < 0)}Infinity" if math.isinf(number) else f"{number:.10g}"
