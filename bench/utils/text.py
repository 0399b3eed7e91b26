"""What came from outside, as people are told of it: in one line, short, with nothing that a terminal would obey."""

from __future__ import annotations

import re
import reprlib

__all__ = [
    "describe_error",
    "format_duration",
    "has_credentials",
    "redact_url",
    "short_repr",
    "single_line",
    "truncate",
]


LONGEST = 500


class _Short(reprlib.Repr):
    """Never spells out a whole structure: an alias in YAML may stand for billions of values."""

    def repr_int(self, number: int, level: int) -> str:
        """Python refuses to spell out an integer of more than 4,300 digits."""
        return f"an integer of {number.bit_length()} bits" if number.bit_length() > 200 else repr(number)


short_repr = _Short()
short_repr.maxstring = short_repr.maxother = 60
short_repr.maxlevel = 2


def single_line(message: object, longest: int = LONGEST) -> str:
    """A message, or an exception's, without line breaks or control characters; what is too long loses its middle."""
    text = str(message)
    if len(text) > 20 * longest:  # the same, without going through all of it
        text = f"{text[: 10 * longest]} {text[-10 * longest :]}"
    words = " ".join(text.split())
    if not words.isprintable():
        words = "".join(one if one.isprintable() else repr(one)[1:-1] for one in words)
    end = longest // 3
    return words if len(words) <= longest else f"{words[: longest - end - 5]} ... {words[-end:]}"


def describe_error(error: BaseException) -> str:
    """What an exception says, in one line without passwords."""
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "  # whose words are sentences here
    return truncate(f"{name}{error}")


def redact_url(uri: str) -> str:
    """The URI, or a text with URIs in it, without the passwords, keys and tokens that one may have."""
    uri = re.sub(r"(://[^:/@\s]*):[^/?#\s]*@", r"\1:***@", uri)
    uri = re.sub(r"(://[^:/@\s]*):(?!\d+/)[^@\s]*/[^@\s]*@", r"\1:***@", uri)  # AWS's keys have slashes in them
    uri = re.sub(r"://[^:/?#@\s]+@", "://***@", uri)  # a token alone
    return re.sub(r"([?&][^=&\s]*(?:token|key|secret|password|signature)[^=&\s]*=)[^&\s]+", r"\1***", uri, flags=re.I)


def has_credentials(uri: str) -> bool:
    """Whether there is a password or a token in it. A user alone is one in an address of the web, where it is a token;
    elsewhere it is a name, as in git+ssh://git@HOST, or a container, as in abfs://CONTAINER@ACCOUNT."""
    named = re.sub(r"(?<!http)(?<!https)://[^:/?#@\s]+@|://git@", "://", uri)
    return redact_url(named) != named


def truncate(text: str) -> str:
    words = " ".join(redact_url(text).split())
    return "".join(one if one.isprintable() else "?" for one in words)[:LONGEST]


def format_duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 5 s, 2 h 36 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
