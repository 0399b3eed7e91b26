"""Check a device before work is begun on it."""

import torch

EXPECTED = "expected cpu, cuda or cuda:NUMBER"


def usable_device(name: torch.device | str | None = None) -> torch.device:
    """Return the CPU or a GPU on which tensors can be computed; None: a GPU if there is one, else the CPU.

    Raises:
        ValueError: it is another kind of device, or this machine has no such GPU.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {name!r} is not known: {EXPECTED}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device} is not supported: {EXPECTED}")
    count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {device} is not here, as torch finds {count} GPUs on this machine: {EXPECTED}")
    try:
        torch.zeros(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # of a driver, or a GPU that another process holds
        raise ValueError(f"device {device} cannot be used ({str(error).splitlines()[0]}): {EXPECTED}") from error
    return device
