"""What came from outside, as people are told of it: in one line, short, with nothing that a terminal would obey."""

from __future__ import annotations

import reprlib

__all__ = ["SHORT", "one_line"]

LONGEST = 500


class _Short(reprlib.Repr):
    """Never spells out a whole structure: an alias in YAML may stand for billions of values."""

    def repr_int(self, number: int, level: int) -> str:
        """Python refuses to spell out an integer of more than 4,300 digits."""
        return f"an integer of {number.bit_length()} bits" if number.bit_length() > 200 else repr(number)


SHORT = _Short()
SHORT.maxstring = SHORT.maxother = 60
SHORT.maxlevel = 2


def one_line(message: object, longest: int = LONGEST) -> str:
    """A message, or an exception's, without line breaks or control characters; what is too long loses its middle."""
    text = str(message)
    if len(text) > 20 * longest:  # the same, without going through all of it
        text = f"{text[: 10 * longest]} {text[-10 * longest :]}"
    words = " ".join(text.split())
    if not words.isprintable():
        words = "".join(one if one.isprintable() else repr(one)[1:-1] for one in words)
    end = longest // 3
    return words if len(words) <= longest else f"{words[: longest - end - 5]} ... {words[-end:]}"
