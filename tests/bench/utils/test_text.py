"""Text for terminals: messages, errors, URLs, values and durations."""

import time

import pytest

from bench.exceptions import ConfigError
from bench.utils.text import describe_error, format_duration, has_credentials, redact_url, short_repr, single_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("n = 3: expected 4 (ü)", "n = 3: expected 4 (ü)"),
        (ValueError("n = 3"), "n = 3"),
        ("a\n b\r\n\tc ", "a b c"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\ud800 \u202e", "\\ud800 \\u202e"),
        ("\x00", "\\x00"),
    ],
)
def test_message_is_one_printable_line(text: object, line: str) -> None:
    """Line breaks become spaces; control, direction and surrogate characters are escaped; other text is unchanged."""
    assert single_line(text) == line


def test_long_message_loses_its_middle() -> None:
    """A long message keeps its beginning and end, has the requested length and takes no time."""
    since = time.process_time()
    line = single_line("start " + "\x1b" * 10_000_000 + " end", 100)
    assert time.process_time() - since < 1
    assert len(line) == 100
    assert line.startswith("start ")
    assert line.endswith(" end")
    assert len(str(ConfigError("x" * 100_000))) == 500


def test_errors_are_described_by_type_and_message() -> None:
    """A ValueError is described by its message alone; a URL in the message loses its password."""
    assert describe_error(ValueError("n = 3")) == "n = 3"
    assert describe_error(KeyError("x")) == "KeyError: 'x'"
    assert describe_error(OSError("no http://me:hush@h/x")) == "OSError: no http://me:***@h/x"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("at postgresql://me:se:cr-et@host:1/db it", "at postgresql://me:***@host:1/db it"),
        ("reach http://me:hu@sh@mlflow:5000/a", "reach http://me:***@mlflow:5000/a"),
        ("s3://key:se/cret@lab/x", "s3://key:***@lab/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_passwords_are_redacted(text: str, redacted: str) -> None:
    """Passwords and tokens in URLs are replaced, also inside other text; a URL without any is unchanged."""
    assert redact_url(text) == redacted
    assert has_credentials(text) is (text != redacted)


@pytest.mark.parametrize("url", ["deelbo @ git+ssh://git@example.org/x.git", "sftp://me@host/x", "abfs://box@acc/x"])
def test_user_name_is_not_a_credential(url: str) -> None:
    """A user name or a container before the @ is allowed outside http(s)."""
    assert not has_credentials(url)


VALUES = {
    "integer": 10**10_000,
    "negative": -(10**10_000),
    "list": [10**10_000],
    "mapping": {"a" * 10**6: ["b" * 10**6] * 100},
    "bytes": b"x" * 10**6,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_repr_of_any_value_is_short(value: object) -> None:
    """No value takes more than 500 characters, including integers that Python refuses to print."""
    assert 0 < len(short_repr.repr(value)) < 500


def test_repr_of_common_integers_is_exact() -> None:
    """An integer of a common size is printed with all digits."""
    assert short_repr.repr(-(2**64)) == str(-(2**64))


@pytest.mark.parametrize(
    ("seconds", "text", "exact"),
    [
        (0, "0.0 s", "0.0 s"),
        (4.24, "4.2 s", "4.2 s"),
        (9.96, "10 s", "10.0 s"),
        (12.4, "12 s", "12.4 s"),
        (59.6, "1 min 0 s", "59.6 s"),
        (59.999, "1 min 0 s", "1 min 0 s"),
        (185, "3 min 5 s", "3 min 5 s"),
        (3599.6, "1 h 0 min", "1 h 0 min 0 s"),
        (9364, "2 h 36 min", "2 h 36 min 4 s"),
    ],
)
def test_durations(seconds: float, text: str, exact: str) -> None:
    """Durations are in seconds, minutes or hours; rounding carries, so 60 s and 60 min never appear."""
    assert format_duration(seconds) == text
    assert format_duration(seconds, exact=True) == exact
