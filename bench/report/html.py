"""HTML for one self-contained page. Figures are inside, tables sort on a click, nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report.formatting import shown_columns

__all__ = ["details", "document", "figure", "is_report", "listing", "paragraphs", "preformatted", "section", "table"]


MARK = '<meta name="generator" content="deelbo-bench report">'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4 }
td { white-space: nowrap } th { border-bottom: 2px solid #999; vertical-align: bottom }
th.sorts { cursor: pointer } th[aria-sort=ascending]::after { content: " \\2191" }
th[aria-sort=descending]::after { content: " \\2193" }
.text { text-align: left } img { max-width: 100%; height: auto }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem }
.note { color: #555; font-size: .9rem } summary { cursor: pointer }
@media print { details > *:not(summary) { display: block } }
"""
# Without it the tables stay as they are. Numbers sort by data-v, text by itself, what is missing last;
# a second click turns the order.
SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  const table = head.closest("table"), place = head.cellIndex;
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const number = row => parseFloat(row.cells[place].dataset.v), text = row => row.cells[place].textContent;
    const order = (a, b) => {
      const p = number(a), q = number(b);
      if (isNaN(p) !== isNaN(q)) return isNaN(p) - isNaN(q);
      return (down ? -1 : 1) * (isNaN(p) ? text(a).localeCompare(text(b)) : p - q || 0);
    };
    const rows = [...table.tBodies[0].rows].sort(order);
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  };
  head.classList.add("sorts");
  head.tabIndex = 0;
  head.onclick = sort;
  head.onkeydown = event => { if (event.key === "Enter") sort(); };
}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page. Only the script above may run in it, whatever stands in the records."""
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{MARK}<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body>
{"".join(parts)}
<script>{SCRIPT}</script></body></html>
"""


def is_report(path: Path) -> bool:
    """Whether a file is a page that `document` made."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return MARK in file.read(1000)


def section(heading: str, *parts: str, level: int = 2) -> str:
    """A heading and what stands under it."""
    return f"<h{level}>{html.escape(heading)}</h{level}>\n{''.join(parts)}"


def paragraphs(texts: Sequence[str], note: bool = False) -> str:
    """Text, escaped."""
    return "".join(f"<p{' class=note' if note else ''}>{html.escape(text)}</p>\n" for text in texts)


def listing(texts: Sequence[str]) -> str:
    """A list of lines, escaped."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>\n"


def preformatted(text: str) -> str:
    """Text as it stands, escaped."""
    return f"<pre>{html.escape(text)}</pre>\n"


def details(summary: str, *parts: str) -> str:
    """Parts that open on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>\n"


def figure(path: Path, alt: str) -> str:
    """A PNG file, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>\n'


def table(content: pd.DataFrame) -> str:
    """A table with the columns that say something, as people read them."""
    columns = shown_columns(content)
    words = {name for name, *_ in columns if not pd.api.types.is_numeric_dtype(content[name])}

    def cell(name: str, value: Any, text: str) -> str:
        side = ' class="text"' if name in words else ""
        key = "" if name in words or pd.isna(value) else f' data-v="{_plain(value)}"'
        return f"<td{side}{key}>{html.escape(text)}</td>"

    head = "".join(f"<th{' class=text' if name in words else ''}>{html.escape(text)}</th>" for name, text, _ in columns)
    body = "".join(
        "<tr>" + "".join(cell(name, row[name], write(row[name])) for name, _, write in columns) + "</tr>"
        for row in content.to_dict("records")
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def _plain(value: Any) -> str:
    """A number that JavaScript reads."""
    number = float(value)
    return f"{'-' * (number < 0)}Infinity" if math.isinf(number) else f"{number:.10g}"
