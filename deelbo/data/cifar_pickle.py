"""Read CIFAR-10's batches, which are pickles, without running code: no function that a file names is called.

An official batch consists of dictionaries, lists, strings, numbers and one array. Pickle rebuilds the array by
functions of numpy that trust their arguments. The classes here take their place and keep the arguments, and only if
these describe a plain array of numbers is one created.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PIXELS = 3 * 32 * 32
DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def read_batch(path: Path) -> tuple[npt.NDArray[Any], list[int]]:
    """Return the pixels (n, 3072), red, green and blue planes of 32 x 32 (officially uint8), and the labels from 0.

    Raises:
        pickle.UnpicklingError, EOFError: not a pickle, or one that names anything but the parts of an array.
        KeyError, TypeError, ValueError: a pickle of something else.
    """
    content = read_pickle(path)
    pixels, labels = content["data"], content["labels"]
    if not isinstance(pixels, _Array):
        raise TypeError(f"data of {path.name} is a {type(pixels).__name__}, expected an array")
    if type(labels) is not list or not all(type(label) is int for label in labels):
        raise TypeError(f"labels of {path.name} are not a list of whole numbers")
    array = pixels.array()
    if array.ndim != 2 or array.shape[1] != PIXELS:
        raise ValueError(f"data of {path.name} has shape {array.shape}, expected (n, {PIXELS})")
    return array, labels


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in such a file, its arrays as `_Array`. Raises as `read_batch`."""
    with path.open("rb") as file:
        content: object = _Unpickler(file, encoding="latin1").load()
    if type(content) is not dict:
        raise TypeError(f"{path.name} holds a {type(content).__name__}, expected a dictionary")
    return content


class _Type:
    """Takes the place of numpy.dtype: a code such as u1, and a byte order."""

    code: object = None
    order: object = "|"

    def __init__(self, code: object = None, *_flags: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        # (version, byte order, ...); the rest describes types with fields, which are refused
        self.order = state[1] if type(state) is tuple and len(state) > 1 else None

    def dtype(self) -> np.dtype[Any]:
        if self.code not in DTYPES or self.order not in ("|", "<", ">", "="):
            raise ValueError("an array of something else than plain numbers")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """Takes the place of numpy.ndarray, which `_reconstruct` creates empty and `__setstate__` fills."""

    state: object = None

    def __init__(self, *arguments: object) -> None:
        """Ignore the arguments, which describe an empty array."""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> npt.NDArray[Any]:
        if type(self.state) is not tuple or len(self.state) != 5:
            raise ValueError("an array without its content")
        _, shape, kind, fortran, raw = self.state
        if type(raw) is str:  # bytes of Python 2
            raw = raw.encode("latin1")
        elif type(raw) is bytearray:
            raw = bytes(raw)
        if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array without a shape")
        if not isinstance(kind, _Type) or type(raw) is not bytes:
            raise ValueError("an array of something else than plain numbers")
        return np.frombuffer(raw, kind.dtype()).reshape(shape, order="F" if fortran is True else "C").copy()


class _Buffer(_Array):
    """Takes the place of numpy's `_frombuffer`, which has all arguments at once."""

    def __init__(self, raw: object = None, kind: object = None, shape: object = None, order: object = None) -> None:
        self.state = (1, shape, kind, order == "F", raw)


REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # as numpy 2 calls it
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): str.encode,  # bytes of Python 3 in a format that has none
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return REPLACEMENTS[module, name]
        except KeyError:
            shown = f"{module}.{name}"[:60]
            shown = shown if shown.isprintable() else repr(shown)
            raise pickle.UnpicklingError(f"it names {shown}, which is not read as it could run code") from None
