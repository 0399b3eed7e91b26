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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deelbo.data.integrity import DataError

CACHE = "deelbo-cache"
"""The folder of decoded images, below that of the datasets."""
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Accepted formats whatever a file's suffix says: not all of the official files are JPEG."""
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of one channel with more than 8 bits, which its own conversion to RGB clips."""
PHOTOMETRIC, BITS, SAMPLE_FORMAT = 262, 258, 339
"""TIFF's tags; 0 is white, bits of a sample, and 2 for signed integers."""
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
        digest = hashlib.sha256(f"2 Pillow {PIL.__version__}\n".encode())
        for files, labels in ((self.training, self.training_labels), (self.test, self.test_labels)):
            digest.update(f"{len(files)}\n".encode())
            for file, label in zip(files, labels, strict=True):
                stat, name = file.stat(), file.relative_to(folder).as_posix()
                line = f"{name} {stat.st_size} {stat.st_mtime_ns} {label}\n"
                digest.update(line.encode(errors="surrogateescape"))  # a name need not be text
        return digest.hexdigest()[:16]


def open_header(path: str | Path) -> Image.Image:
    """Open an image of an accepted format and kind, without decoding it."""
    image = Image.open(path, formats=FORMATS)
    if image.mode == "LAB":
        image.close()
        raise DataError("colors in CIELAB, expected RGB")
    return image


def open_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Return the image in RGB, of a format that Pillow decodes itself: an EPS file would start Ghostscript.

    Channels of more than 8 bits are scaled by their whole range, transparency is ignored. ``upright`` turns the image
    as its EXIF orientation says. A channel whose range cannot be known raises DataError.
    """
    with open_header(path) as image:
        image.load()
        if upright:
            with suppress(Exception):  # of EXIF data that are damaged, which Pillow's readers raise in many ways
                ImageOps.exif_transpose(image, in_place=True)
        return (_scale_to_8_bits(image) if image.mode in WIDE_MODES else image).convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Keep the highest 8 bits of integers, of signed ones without the sign; floats are expected from 0 to 1."""
    tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise DataError(f"floats from {values.min():g} to {values.max():g}, expected 0 to 1")
        scaled = np.rint(255 * values)
    else:
        bits, signed = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == 2
        values = values.view(np.uint32) if bits == 32 and not signed else values
        scaled = values >> (bits - signed - 8)
        if values.min() < 0 or (bits == 32 and scaled.max() == 0 < values.max()):
            raise DataError(f"{bits}-bit integers from {values.min()} to {values.max()}, of which white is not known")
    return Image.fromarray((255 - scaled if tags.get(PHOTOMETRIC) == 0 else scaled).astype(np.uint8))


def describe_failure(error: Exception) -> str:
    """Describe why an image cannot be decoded, without Pillow's messages, which mean little to its owner."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if type(error) is OSError and error.errno is None:  # as Pillow's decoders raise it
        return "truncated or damaged"
    return str(error) if isinstance(error, DataError) else type(error).__name__


def decode(files: Sequence[Path], side: int) -> Tensor:
    """Return the images in RGB, resized as torchvision resizes a PIL image; uint8 (n, 3, side, side)."""
    pixels, problems = decode_readable(files, side)
    for file, problem in problems.items():
        raise DataError(
            f"{file} cannot be decoded ({problem}): put the official file in its place, or delete"
            " it and run `deelbo-bench prepare CONFIG` where there is a network"
        )
    return pixels


def decode_readable(files: Sequence[Path], side: int, upright: bool = False) -> tuple[Tensor, dict[Path, str]]:
    """Return images as `decode` does, and why some of them could not be decoded, whose pixels are zeros."""
    pixels = torch.zeros(len(files), 3, side, side, dtype=torch.uint8)

    def decode_one(i: int) -> str | None:
        try:
            resized = open_image(files[i], upright).resize((side, side), Image.Resampling.BILINEAR)
            pixels[i] = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        except Exception as error:  # Pillow's decoders raise anything, such as SyntaxError or struct.error
            return "empty" if files[i].is_file() and not files[i].stat().st_size else describe_failure(error)
        return None

    # threads suffice, as Pillow releases the interpreter lock while it decodes and resizes
    with ThreadPoolExecutor(THREADS) as pool:
        problems = zip(files, pool.map(decode_one, range(len(files))), strict=True)
        return pixels, {file: problem for file, problem in problems if problem is not None}


def load_decoded(listing: Listing, side: int, name: str, root: Path, folder: Path) -> tuple[Tensor, Tensor]:
    """Return training and test images of side x side pixels, from the cache below ``root`` or decoded and cached now.

    A cached file is mapped into memory, so that the processes of a machine share it. A damaged one is made again. If
    nothing can be written, the images are in memory only.
    """
    path = root / CACHE / f"{name}-{side}-{listing.digest(folder)}.pt"
    shapes = _shapes(listing, side)
    if (pixels := _read(path, shapes)) is None:
        pixels = {"training": decode(listing.training, side), "test": decode(listing.test, side)}
        if _write(path, pixels, like=listing.training[0]):
            pixels = _read(path, shapes) or pixels
    return pixels["training"], pixels["test"]


def load_readable(
    listing: Listing, side: int, name: str, root: Path, folder: Path, skip: bool
) -> tuple[tuple[Tensor, Tensor], dict[Path, str]]:
    """Return upright images as `load_decoded` does, and why some could not be decoded: cached only with ``skip``."""
    path = root / CACHE / f"{name}-{side}-{listing.digest(folder)}.pt"
    files = [*listing.training, *listing.test]
    shapes = {**_shapes(listing, side), "unreadable": (len(files),)}
    if (pixels := _read(path, shapes)) is not None:
        unreadable = pixels["unreadable"].nonzero().flatten().tolist()
        return (pixels["training"], pixels["test"]), {files[i]: "found earlier" for i in unreadable}
    training, problems = decode_readable(listing.training, side, upright=True)
    test, test_problems = decode_readable(listing.test, side, upright=True)
    problems |= test_problems
    if problems and not skip:
        return (training, test), problems
    marks = torch.tensor([file in problems for file in files], dtype=torch.uint8)
    pixels = {"training": training, "test": test, "unreadable": marks}
    if _write(path, pixels, like=files[0]):
        pixels = _read(path, shapes) or pixels
    return (pixels["training"], pixels["test"]), problems


def _shapes(listing: Listing, side: int) -> dict[str, tuple[int, ...]]:
    return {"training": (len(listing.training), 3, side, side), "test": (len(listing.test), 3, side, side)}


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
        path.parent.mkdir(parents=True, exist_ok=True)
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
