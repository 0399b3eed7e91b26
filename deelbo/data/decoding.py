"""Decode image files into one uint8 tensor of one size, with many threads, and cache the result beside the data.

The cached file is named after the dataset, the size, and a hash of every file's name, size, time and label, so that
images that have changed are decoded again. It may be deleted at any time.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from deelbo.data.integrity import DataError

CACHE = "deelbo-cache"
"""The folder of decoded images, below that of the datasets."""
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
"""Accepted formats whatever a file's suffix says: not all of the official files are JPEG."""
THREADS = min(os.cpu_count() or 1, 32)


@dataclass(frozen=True)
class Listing:
    """The image files of a dataset with their labels from 0, in the official order."""

    training: list[Path]
    training_labels: list[int]
    test: list[Path]
    test_labels: list[int]

    def digest(self, folder: Path) -> str:
        """Hash what determines the pixels: each file's name below ``folder``, size, time and label, and Pillow."""
        digest = hashlib.sha256(f"1 Pillow {PIL.__version__}\n".encode())
        for files, labels in ((self.training, self.training_labels), (self.test, self.test_labels)):
            digest.update(f"{len(files)}\n".encode())
            for file, label in zip(files, labels, strict=True):
                stat, name = file.stat(), file.relative_to(folder).as_posix()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns} {label}\n".encode())
        return digest.hexdigest()[:16]


def open_image(path: str | Path) -> Image.Image:
    """Return the image in RGB, of a format that Pillow decodes itself: an EPS file would start Ghostscript."""
    with Image.open(path, formats=FORMATS) as image:
        return image.convert("RGB")


def decode(files: Sequence[Path], side: int) -> Tensor:
    """Return the images in RGB, resized as torchvision resizes a PIL image; uint8 (n, 3, side, side)."""
    pixels = torch.empty(len(files), 3, side, side, dtype=torch.uint8)

    def decode_one(i: int) -> None:
        try:
            resized = open_image(files[i]).resize((side, side), Image.Resampling.BILINEAR)
        except Exception as error:
            raise DataError(
                f"{files[i]} cannot be decoded ({type(error).__name__}): put the official file in its place, or delete"
                " it and run `deelbo-bench prepare CONFIG` where there is a network"
            ) from error
        pixels[i] = torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    # threads suffice, as Pillow releases the interpreter lock while it decodes and resizes
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(decode_one, range(len(files))))
    return pixels


def load_decoded(listing: Listing, side: int, name: str, root: Path, folder: Path) -> tuple[Tensor, Tensor]:
    """Return training and test images of side x side pixels, from the cache below ``root`` or decoded and cached now.

    A cached file is mapped into memory, so that the processes of a machine share it. A damaged one is made again. If
    nothing can be written, the images are in memory only.
    """
    path = root / CACHE / f"{name}-{side}-{listing.digest(folder)}.pt"
    shapes = {"training": (len(listing.training), 3, side, side), "test": (len(listing.test), 3, side, side)}
    if (pixels := _read(path, shapes)) is None:
        pixels = {"training": decode(listing.training, side), "test": decode(listing.test, side)}
        if _write(path, pixels, like=listing.training[0]):
            pixels = _read(path, shapes) or pixels
    return pixels["training"], pixels["test"]


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    try:
        pixels = torch.load(path, weights_only=True, mmap=True)
        form = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in pixels.items()}
    except Exception:  # missing, damaged, or another kind of file: in each case it is made again
        return None
    return pixels if form == {key: (shape, torch.uint8) for key, shape in shapes.items()} else None


def _write(path: Path, pixels: dict[str, Tensor], like: Path) -> bool:
    """Write a file, as a whole or not at all, with the permissions of ``like``; return whether it could be written."""
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".part") as folder:
            temporary = Path(folder) / path.name
            with temporary.open("wb") as file:
                torch.save(pixels, file)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(like, temporary)
            temporary.replace(path)
    except (OSError, RuntimeError):  # read-only or full; torch reports a full disk as RuntimeError
        return False
    return True
