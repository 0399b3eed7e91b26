"""Read tensors from .pt, .pth and .safetensors files without running code that such a file may contain."""

import pickle
import re
import reprlib
import warnings
from pathlib import Path

import torch
from torch import Tensor

from deelbo.paths import expand_user

SUFFIXES = (".pt", ".pth", ".safetensors")


def read_file(path: str | Path) -> object:
    """Return the content of a .pt, .pth or .safetensors file, on the CPU.

    Raises:
        ValueError: no such file, another suffix, damage, or content that is more than tensors and plain values.
    """
    path = expand_user(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: tensors are read from {', '.join(SUFFIXES)} files, got the suffix {path.suffix!r}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file: give the path of a {path.suffix} file")
    try:
        return _load(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs {error.name}: pip install {error.name}") from error
    except Exception as error:  # torch.load raises whatever the bytes lead to, KeyError for example
        text = str(error)
        if isinstance(error, pickle.UnpicklingError | RuntimeError) and re.search("GLOBAL|TorchScript", text):
            name = re.search(r"GLOBAL ([\w.]+)", text)
            found = f"{path} holds {name[1][:60] if name else 'a program'}, which is not read as it could run code"
            raise ValueError(f"{found}: save its state dict alone, torch.save(model.state_dict(), path)") from error
        raise ValueError(f"{path} is damaged or not a {path.suffix} file ({one_line(error)}): copy it again") from error


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its error, if any, says enough
        return torch.load(path, map_location="cpu", weights_only=True)


def one_line(error: Exception) -> str:
    """Return an error's type and the first line of its message, at most 120 characters of it."""
    words = (str(error).splitlines() or [""])[0][:120]
    if not words.isprintable():  # control characters of an untrusted file
        words = repr(words)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return a file's tensors by name, also where they are under "state_dict" or "model". Raises as `read_file`."""
    held = read_file(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(wrapper), dict):
            held = held[wrapper]
            break
    if not isinstance(held, dict):
        raise ValueError(f"{path} holds a {type(held).__name__}, expected tensors by name: give a state dict")
    if not held:
        raise ValueError(f"{path} holds nothing: give a state dict")
    for name, tensor in held.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            found = f"{reprlib.repr(name)} is a {type(tensor).__name__}"
            raise ValueError(f"{path}: {found}, expected a tensor: give a state dict")
        if tensor.layout is not torch.strided or tensor.is_meta:
            kind = "of the device meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
            raise ValueError(f"{path}: {reprlib.repr(name)} is {kind}, expected a dense tensor: give its numbers")
    return {name: tensor.detach() for name, tensor in held.items()}
