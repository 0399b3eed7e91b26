"""The page: text is escaped, only its own script runs, and its tables sort."""

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.report import html as page
from bench.report.html import is_report
from bench.report.page import build_page
from bench.results.frame import COLUMNS
from bench.results.sources import Results

EVIL = "<script>alert('x')</script><img src=\"http://evil/\" onerror='y'> & \"'</td></pre>"


class Tags(HTMLParser):
    """Tags that a browser would open, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[str]:
    return [tag for tag, _ in Tags(text).found]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (page.section(EVIL), ["h2"]),
        (page.notes(EVIL, EVIL), ["p", "p"]),
        (page.bullets([EVIL]), ["ul", "li"]),
        (page.pre(EVIL), ["pre"]),
        (page.details(EVIL), ["details", "summary"]),
    ],
    ids=["section", "notes", "bullets", "pre", "details"],
)
def test_text_stays_text(made: str, expected: list[str]) -> None:
    """HTML in any text is escaped."""
    assert tags(made) == expected
    assert EVIL in html.unescape(made)


def test_cells_and_headings_stay_text() -> None:
    """HTML in a cell of any column, or in a column's name, is escaped."""
    content = pd.DataFrame({"source": [EVIL, "b"], "dataset": EVIL, "prior": EVIL, EVIL: EVIL, "mean": 1.0})
    made = page.table(content)
    assert tags(made) == ["div", "table", "thead", "tr", *["th"] * 5, "tbody", *["tr", *["td"] * 5] * 2]
    assert html.unescape(made).count(EVIL) == 1 + 1 + 3 * 2


def test_the_title_and_an_images_description_stay_text(tmp_path: Path) -> None:
    """HTML in the page's title or an image's description is escaped."""
    (tmp_path / "a.png").write_bytes(b"png")
    made = Tags(page.document(EVIL, page.figure(tmp_path / "a.png", EVIL))).found
    assert [tag for tag, _ in made].count("script") == 1
    ((_, image),) = [found for found in made if found[0] == "img"]
    assert image == {"alt": EVIL, "src": "data:image/png;base64," + base64.b64encode(b"png").decode()}


def test_only_its_own_script_may_run() -> None:
    """The policy allows inline style, embedded images, and the page's own script by its hash."""
    made = page.document("t", page.paragraphs("x"))
    (policy,) = [attrs["content"] for tag, attrs in Tags(made).found if attrs.get("http-equiv")]
    (script,) = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }


def test_reports_are_recognized(tmp_path: Path) -> None:
    """A page built here is recognized; another page, a binary file, a folder or a missing file is not."""
    made, foreign, binary = (tmp_path / name for name in ("made.html", "foreign.html", "binary.html"))
    made.write_text(page.document(EVIL))
    foreign.write_text("<!doctype html><title>thesis</title>")
    binary.write_bytes(b"\xff\xfe\x00")
    assert is_report(made)
    assert not any(is_report(path) for path in (foreign, binary, tmp_path, tmp_path / "missing.html"))


NUMBERS = [3, -0.5, 1e-12, 123456789.0, math.inf, -math.inf, math.nan]


def test_cells_have_numbers_for_sorting() -> None:
    """The cell of a number has it as data-v in JavaScript's form, infinity too; missing values and text have none."""
    content = pd.DataFrame({"times_as_long": NUMBERS, "method": "map-gs"})
    cells = [attrs for tag, attrs in Tags(page.table(content)).found if tag == "td"]
    text, numbers = cells[::2], cells[1::2]
    assert all(cell == {"class": "text"} for cell in text)
    assert [float(str(cell["data-v"])) for cell in numbers[:-1]] == pytest.approx(NUMBERS[:-1])
    assert "data-v" not in numbers[-1]
    assert [cell["data-v"] for cell in numbers[4:6]] == ["Infinity", "-Infinity"]


def results(**given: Any) -> Results:
    frame = pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
    empty: dict[str, Any] = {"label": "", "title": "t", "frame": frame, "left_out": [], "notes": [], "about": []}
    return Results(**(empty | given))


def test_all_text_on_the_page_is_escaped() -> None:
    """HTML in titles, labels, notes, problems, accounts and configurations is escaped; nothing is fetched."""
    parts = {"title": EVIL, "left_out": [EVIL], "notes": [EVIL], "about": [EVIL], "config": EVIL}
    names = ("table2", "overview", "equal_compute", "regularization", "paired_tests", "counts")
    content = {name: pd.DataFrame({"dataset": [EVIL], "method": [EVIL], "cells": [2]}) for name in names}
    for several in ([results(**parts)], [results(**parts, label=EVIL), results(**parts, label="b")]):
        made = build_page(several, [EVIL], content, {}, None, [EVIL])
        assert html.unescape(made).count(EVIL) >= 1 + 1 + 1 + 6 + 5 * len(several)
        found = Tags(made).found
        assert [tag for tag, _ in found].count("script") == 1
        assert not {"img", "link", "iframe", "a", "form"} & {tag for tag, _ in found}
        assert not {"src", "href", "onerror", "onclick"} & {name for _, attrs in found for name in attrs}


DOM = """
const given = JSON.parse(process.argv[1]);
const element = (more) => ({attributes: {}, classList: {add() {}}, ...more,
  getAttribute(name) { return this.attributes[name] ?? null; },
  setAttribute(name, value) { this.attributes[name] = value; },
  removeAttribute(name) { delete this.attributes[name]; }});
const body = {rows: given.rows.map(cells => ({cells: cells.map(([text, v]) =>
  ({textContent: text, dataset: v === null ? {} : {v}}))})), append(...rows) { this.rows = rows; }};
const heads = given.rows[0].map((_, i) => element({cellIndex: i, closest: () => table}));
const table = {tBodies: [body], querySelectorAll: () => heads};
const document = {querySelectorAll: () => heads};
"""
READ = """
const shown = [];
for (const click of given.clicks) {
  if (typeof click === "number") heads[click].onclick(); else heads[click[0]].onkeydown({key: click[1]});
  shown.push([body.rows.map(row => row.cells[0].textContent), heads.map(head => head.getAttribute("aria-sort"))]);
}
console.log(JSON.stringify(shown));
"""


def sort(content: pd.DataFrame, *clicks: Any) -> list[Any]:
    """Return the first column and each heading's aria-sort after each click on a heading."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", page.table(content))[1:]:
        cells = re.findall(r'<td(?: class="text")?(?: data-v="([^"]*)")?>(.*?)</td>', row)
        rows.append([(html.unescape(text), number or None) for number, text in cells])
    given = json.dumps({"rows": rows, "clicks": clicks})
    script = Path(page.__file__).with_name("assets").joinpath("report.js").read_text()
    done = subprocess.run(
        [node, "-e", DOM + script + READ, given], capture_output=True, text=True, timeout=60, check=True
    )
    return list(json.loads(done.stdout))


def test_a_click_sorts_by_number() -> None:
    """Numbers sort by value, infinity and missing values last; a second click, or the key Enter, reverses the order."""
    content = pd.DataFrame({"dataset": list("abcdef"), "times_as_long": [10.0, 9.0, math.inf, math.nan, -1.0, 1e-9]})
    up, down, other, again = sort(content, 1, 1, [1, "Tab"], [0, "Enter"])
    assert up == [list("efbacd"), [None, "ascending"]]
    assert down[1] == [None, "descending"]
    assert [name for name in down[0] if name != "d"] == list("cabfe")
    assert other == down
    assert again == [list("abcdef"), ["ascending", None]]


@pytest.mark.parametrize("names", [["b", "a", "C"], ["2025-02", "2025-01", "2024-12"]])
def test_a_click_sorts_text_as_text(names: list[str]) -> None:
    """Text sorts alphabetically, also if it begins with a number."""
    ((shown, _),) = sort(pd.DataFrame({"dataset": names, "mean": 1.0}), 0)
    assert shown == sorted(names, key=str.lower)
