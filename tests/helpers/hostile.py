"""Hostile input for tests: mutations of valid content, and a file that must never be created.

The environment variable DEELBO_FUZZ multiplies the numbers of examples.
"""

import copy
import datetime
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Fuzz = Callable[[int, st.SearchStrategy[Any], Callable[[Any], None]], None]
Mutated = Callable[..., st.SearchStrategy[Any]]
MOST_SECONDS = 5.0

STRANGE = [
    *(float("nan"), float("inf"), float("-inf"), 1e308, -0.0, 10**400, 2**63, -(2**63) - 1, True, False, None, 0, -1),
    *("", "nan", "-inf", "1e400", "\x1b[31mred\x1b[0m", "two\nlines", "\ud800", "\x00", "\u202eabc", "x" * 20_000),
    *("../../../etc/passwd", "<script>x</script>", "$(touch x)", "{0.__class__}", "%s%n", "=1+1", "1_0", "0x10"),
    *([], {}, [[]], {"": {}}, [[[[[[1]]]]]], {"a": {"b": {"c": {}}}}, [None], list(range(50)), ["x"] * 300),
    *(datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), b"\xff", [1, "a", None, {}]),
    *({"mean": 1, "variance": 2, "factor": 3}, {"__class__": "x"}, {str(i): i for i in range(300)}, [1e-400]),
]
LEAVES = st.sampled_from(STRANGE) | st.integers() | st.floats() | st.text(max_size=20)
NESTED = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=5), LEAVES, max_size=3)
VALUES = NESTED.map(copy.deepcopy)  # what is drawn once more must not hold what was put into it


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key in it, at any depth."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)


@st.composite
def _mutated(draw: st.DrawFn, content: Any, most: int = 3, keys: tuple[str, ...] = ()) -> Any:
    changed = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(changed))
        if not places:
            return draw(VALUES)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["replace", "replace", "replace", "delete", "insert", "copy", "whole"]))
        if what == "replace":
            container[key] = draw(VALUES)
        elif what == "delete":
            del container[key]
        elif what == "copy":  # a good value, where another should be
            other, there = places[draw(st.integers(0, len(places) - 1))]
            if there in other if isinstance(other, dict) else there < len(other):
                container[key] = copy.deepcopy(other[there])
        elif what == "insert" and isinstance(container, dict):
            container[draw(st.sampled_from(keys) if keys else st.text(max_size=8)) or draw(st.text())] = draw(VALUES)
        elif what == "insert":
            container.insert(key, draw(VALUES))
        elif draw(st.integers(0, 9)) == 0:
            changed = draw(VALUES)
    return changed


@st.composite
def _garbled(draw: st.DrawFn, text: bytes, snippets: tuple[bytes, ...] = ()) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        until = min(len(text), at + draw(st.integers(0, 12)))
        what = draw(st.sampled_from(["cut", "replace", "flip", "remove", "twice", *["snippet"] * (2 * bool(snippets))]))
        if what == "cut":
            text = text[:at]
        elif what == "replace":
            text = text[:at] + draw(st.binary(max_size=8)) + text[until:]
        elif what == "flip":
            text = text[:at] + bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in text[at:until]) + text[until:]
        elif what == "remove":
            text = text[:at] + text[until:]
        elif what == "twice":
            text = text[:until] + text[at:]
        else:
            text = text[:at] + draw(st.sampled_from(snippets)) + text[at:]
    return text


@pytest.fixture
def mutated() -> Mutated:
    """A strategy: JSON-like content with one to three values or keys changed, removed or added at any depth.

    ``keys``: names that added ones may have.
    """
    return _mutated


@pytest.fixture
def garbled() -> Mutated:
    """A strategy: bytes that are cut, changed, removed, doubled, or have one of ``snippets`` inserted."""
    return _garbled


@pytest.fixture
def fuzz(record_property: Callable[[str, object], None]) -> Fuzz:
    """Call a function with a number of examples of a strategy, always the same, each in less than 5 s of CPU time."""

    def run(examples: int, strategy: st.SearchStrategy[Any], body: Callable[[Any], None]) -> None:
        count = 0

        def timed(example: Any) -> None:
            nonlocal count
            count += 1
            since = time.process_time()
            body(example)
            assert time.process_time() - since < MOST_SECONDS

        most = max(1, round(examples * float(os.environ.get("DEELBO_FUZZ", "1"))))
        how = settings(
            max_examples=most,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        how(given(strategy)(timed))()
        assert count >= min(most, 2)
        record_property("examples", count)

    return run


@pytest.fixture
def tripwire(tmp_path: Path) -> Iterator[Path]:
    """A path that hostile input tries to create; the test fails if it exists at the end."""
    path = tmp_path / "tripped"
    yield path
    assert not path.exists()
