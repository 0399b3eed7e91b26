"""The official archives, fetched and unpacked by torchvision: the one place of the library that touches the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchvision import datasets

from deelbo.data.integrity import CIFAR10, FLOWERS, PET, DataError, Folder, translated
from deelbo.data.torchvision_datasets import check

__all__ = ["download"]


def _is_whole(folder: Folder, root: str) -> bool:
    """What torchvision is told instead of its own answer, which takes a half-unpacked folder for whole."""
    try:
        check(folder, Path(root), verify=True)
    except DataError:
        return False
    return True


class _CIFAR10(datasets.CIFAR10):  # type: ignore[misc]
    def _check_integrity(self) -> bool:
        return _is_whole(CIFAR10, self.root)


class _Pet(datasets.OxfordIIITPet):  # type: ignore[misc]
    def _check_exists(self) -> bool:
        return _is_whole(PET, self.root)


class _Flowers(datasets.Flowers102):  # type: ignore[misc]
    def _check_integrity(self) -> bool:
        return _is_whole(FLOWERS, self.root)


_READERS: dict[str, Callable[..., object]] = {CIFAR10.name: _CIFAR10, PET.name: _Pet, FLOWERS.name: _Flowers}


def download(folder: Folder, root: Path) -> Path:
    """The dataset's folder below ``root``, whole: what is missing is downloaded, and its checksums are looked at.

    An archive that lies there whole is unpacked and not downloaded again.

    Raises:
        DataError: it cannot be downloaded or written.
    """
    remedy = (
        f"run it where there is a network, or bring {folder.folder} from a machine that has it and set `data` /"
        " $DEELBO_DATA to the folder that holds it"
    )
    with translated(f"{folder.name} could not be downloaded to {root}", remedy):
        root.mkdir(parents=True, exist_ok=True)
        _READERS[folder.name](str(root), download=True)
    check(folder, root, verify=True)
    return root / folder.folder
