"""What came from outside, told in one short line."""

from __future__ import annotations

import time

import pytest

from bench.exceptions import ConfigError
from bench.utils.text import short_repr, single_line


def test_a_message_stays_as_it_is() -> None:
    """A short message of one line is told as it is, an exception's like a text."""
    assert (
        single_line(ValueError("n = 3: expected 4 (ü)"))
        == single_line("n = 3: expected 4 (ü)")
        == "n = 3: expected 4 (ü)"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n b\r\n\tc ", "a b c"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\ud800 \u202e", "\\ud800 \\u202e"),
        ("\x00", "\\x00"),
    ],
)
def test_nothing_that_a_terminal_obeys(text: str, line: str) -> None:
    """Line breaks become spaces; control characters, those that turn the direction, and what is no character, are
    spelled out."""
    assert single_line(text) == line


def test_what_is_long_loses_its_middle() -> None:
    """Of a long message beginning and end are told, in no more than the characters allowed, at once."""
    since = time.process_time()
    line = single_line("start " + "\x1b" * 10_000_000 + " end", 100)
    assert time.process_time() - since < 1
    assert len(line) == 100
    assert line.startswith("start ")
    assert line.endswith(" end")
    assert len(str(ConfigError("x" * 100_000))) == 500


VALUES = {
    "integer": 10**10_000,
    "negative": -(10**10_000),
    "list": [10**10_000],
    "mapping": {"a" * 10**6: ["b" * 10**6] * 100},
    "bytes": b"x" * 10**6,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_any_value_is_short(value: object) -> None:
    """No value takes more than a few words, an integer that Python itself refuses to spell out among them."""
    assert 0 < len(short_repr.repr(value)) < 500


def test_small_integers_are_spelled_out() -> None:
    """An integer of an ordinary size is told by its digits."""
    assert short_repr.repr(-(2**64)) == str(-(2**64))
