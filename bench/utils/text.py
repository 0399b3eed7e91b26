"""Format text for terminals: messages, errors, URLs without credentials, values and durations."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import reprlib
from pathlib import Path

MAX_MESSAGE_CHARS = 500
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)


class _ShortRepr(reprlib.Repr):
    """A bounded ``repr``: an alias in YAML may stand for billions of values."""

    def repr_int(self, number: int, _level: int) -> str:
        """Python refuses to print an integer of more than 4,300 digits."""
        return f"an integer of {number.bit_length()} bits" if number.bit_length() > 200 else repr(number)


short_repr = _ShortRepr()
short_repr.maxstring = short_repr.maxother = 60
short_repr.maxlevel = 2


def single_line(message: object, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Format untrusted text for terminals: single line, bounded length, control characters escaped.

    Text that is too long loses its middle.
    """
    text = str(message)
    if len(text) > 20 * max_chars:  # the same result, without processing all of it
        text = f"{text[: 10 * max_chars]} {text[-10 * max_chars :]}"
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    end = max_chars // 3
    return line if len(line) <= max_chars else f"{line[: max_chars - end - 5]} ... {line[-end:]}"


def short(path: str | Path) -> str:
    """Return a path as one would type it here: relative if it is below the working directory."""
    text = str(path)
    relative = os.path.relpath(text) if Path(text).is_absolute() else text
    if relative.startswith(".."):
        return text
    return f"./{relative}" if relative.startswith(("-", "~")) else relative


def describe_error(error: BaseException, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Describe an exception in a single line without credentials.

    The type is named unless it is a ValueError, whose message is a sentence in this project.
    """
    message = redact_url(str(error))
    return single_line(message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}", max_chars)


def describe_denied(error: BaseException) -> str | None:
    """Describe in a single line a file that cannot be used: why, whose it is, and what to do.

    Returns:
        None for any other error.
    """
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of `os.getcwd`
        return "the current folder was deleted: change to another one"
    if not isinstance(error, OSError) or error.errno not in DENIED or not isinstance(error.filename, str):
        return None
    place = Path(error.filename).absolute()
    owner = ""
    with contextlib.suppress(OSError, KeyError, StopIteration):  # a user without a name
        owner = f"; {(found := next(p for p in (place, *place.parents) if p.exists()))} belongs to {found.owner()}"
    return (
        f"{place} cannot be used ({error.strerror}{owner}): choose another place (--storage, --out, $DEELBO_CACHE, "
        "$TMPDIR), or copy it, or ask for access"
    )


def connection_problem(error: Exception) -> str:
    """Return the last cause in the message of a chain of connection errors, as `requests` raises them."""
    message = single_line(redact_url(str(error)))
    for start in ("[Errno", "NameResolutionError", "timed out", "SSLError", "Max retries"):
        if (position := message.rfind(start)) >= 0:
            return message[position:].rstrip("'\")")[:120]
    return message[:120] or type(error).__name__


def redact_url(uri: str) -> str:
    """Replace the passwords, keys and tokens of a URI, or of a text with URIs in it, by asterisks."""
    uri = re.sub(r"(://[^:/@\s]*):[^/?#\s]*@", r"\1:***@", uri)
    uri = re.sub(r"(://[^:/@\s]*):(?!\d+/)[^@\s]*/[^@\s]*@", r"\1:***@", uri)  # AWS's keys have slashes in them
    uri = re.sub(r"://[^:/?#@\s]+@", "://***@", uri)  # a token alone
    return re.sub(r"([?&][^=&\s]*(?:token|key|secret|password|signature)[^=&\s]*=)[^&\s]+", r"\1***", uri, flags=re.I)


def has_credentials(uri: str) -> bool:
    """Return True if a URI contains a password or a token.

    A user name alone counts as a token in http(s) URLs; elsewhere it is a name, as in git+ssh://git@HOST, or a
    container, as in abfs://CONTAINER@ACCOUNT.
    """
    without_user = re.sub(r"(?<!http)(?<!https)://[^:/?#@\s]+@|://git@", "://", uri)
    return redact_url(without_user) != without_user


def format_duration(seconds: float, exact: bool = False) -> str:
    """Format a duration: 4.2 s, 42 s, 3 min 5 s, 2 h 36 min; with ``exact`` 42.3 s and 2 h 36 min 4 s."""
    if seconds < (59.95 if exact else 9.95):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min" + f" {rest} s" * exact
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
