"""Tests of reading one image file: depths, kinds of colors, and orientation, against the arrays that were written."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from deelbo.data.decoding import decode, open_header, open_image
from deelbo.data.integrity import DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),  # of torchvision 0.29
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning"),
]
Array = NDArray[Any]
RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
RAMP16 = (RAMP * 65535).astype(np.uint16)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def write_tiff(path: Path, values: Array, kind: int, white: int = 1, order: str = "<") -> None:
    """Write one channel as a TIFF file of one strip; ``white`` is 0 if the least value is white."""
    height, width = values.shape
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[call-overload]
    tags = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: white, 273: 0, 277: 1, 278: height}
    tags |= {279: len(raw), 339: kind}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # where the pixels begin
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    path.write_bytes(start + entries + bytes(4) + raw)


def write_png(path: Path, values: Array, color: int) -> None:
    """Write channels of 16 bits (H, W, C) as a PNG file; ``color`` is PNG's number of their kind."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0),
        b"IDAT": zlib.compress(raw),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks.items()]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def read_grey(path: Path) -> Array:
    image = open_image(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, pixels[..., :1].repeat(3, axis=2))
    return pixels[..., 0]


@pytest.mark.parametrize(("suffix", "order"), [("png", "<"), ("tif", "<"), ("tif", ">"), ("pgm", "<")])
def test_grey_of_16_bits(tmp_path: Path, suffix: str, order: str) -> None:
    """The high byte is kept: a ramp has 256 levels and the mean 127.5."""
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RAMP16.astype(f"{order}u2")).save(path)
    found = read_grey(path)
    np.testing.assert_array_equal(found, RAMP16 >> 8)
    assert len(np.unique(found)) == 256
    assert found.mean() == pytest.approx(127.5, abs=0.1)
    pixels = decode([path], 64)  # published datasets are read by the same rule
    np.testing.assert_array_equal(pixels[0, 0].numpy(), RAMP16 >> 8)


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"])
def test_png_of_16_bits(tmp_path: Path, color: int, channels: int) -> None:
    """Every kind of color keeps the high byte, as another decoder reads it, and loses its transparency."""
    values = np.random.default_rng(color).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    write_png(tmp_path / "x.png", values, color)
    content = torch.from_numpy(np.fromfile(tmp_path / "x.png", dtype=np.uint8))
    other = decode_image(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).to(torch.int32).numpy()
    np.testing.assert_array_equal(other, values)
    colors = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x.png")), colors >> 8)


TIFFS = {
    "16 bits": (RAMP16, UNSIGNED, RAMP16 >> 8),
    "16 bits, signed": ((RAMP16 >> 1).astype(np.int16), SIGNED, RAMP16 >> 8),
    "32 bits": ((RAMP * (2**32 - 1)).astype(np.uint32), UNSIGNED, (RAMP * (2**32 - 1)).astype(np.uint32) >> 24),
    "32 bits, signed": ((RAMP * (2**31 - 1)).astype(np.int32), SIGNED, (RAMP * (2**31 - 1)).astype(np.int32) >> 23),
    "32 bits, black": (np.zeros((5, 4), np.uint32), UNSIGNED, np.zeros((5, 4))),
    "floats": (RAMP.astype(np.float32), FLOAT, np.rint(255 * RAMP.astype(np.float32))),
}


@pytest.mark.parametrize(("values", "kind", "expected"), TIFFS.values(), ids=TIFFS)
@pytest.mark.parametrize("white", [1, 0])
def test_tiff_of_many_bits(tmp_path: Path, values: Array, kind: int, expected: Array, white: int) -> None:
    """Integers are scaled by the positive range of their type, floats by 255, whichever end is white."""
    supported = white or kind == FLOAT or values.dtype == np.uint16
    write_tiff(tmp_path / "x.tif", values, kind, white)
    if not supported:  # by Pillow
        with pytest.raises(OSError, match="cannot identify"):
            open_image(tmp_path / "x.tif")
        return
    np.testing.assert_array_equal(read_grey(tmp_path / "x.tif"), expected if white else 255 - expected)


@pytest.mark.parametrize(
    ("values", "kind"), [(RAMP16, UNSIGNED), (RAMP.astype(np.float32), FLOAT)], ids=["int", "float"]
)
def test_tiff_with_the_high_byte_first(tmp_path: Path, values: Array, kind: int) -> None:
    """The order of bytes does not matter."""
    write_tiff(tmp_path / "x.tif", values, kind, order=">")
    scaled = np.rint(255 * values) if kind == FLOAT else values >> 8
    np.testing.assert_array_equal(read_grey(tmp_path / "x.tif"), scaled)


UNKNOWN = {
    "16 bits in 32": (RAMP16.astype(np.int32), SIGNED, "32-bit integers from 0 to 65535, of which white is not known"),
    "8 bits in 32": ((RAMP16 >> 8).astype(np.uint32), UNSIGNED, "32-bit integers from 0 to 255"),
    "negative": (RAMP16.astype(np.int32) - 9, SIGNED, "32-bit integers from -9 to"),
    "negative, 16 bits": ((RAMP16.astype(np.int32) - 32768).astype(np.int16), SIGNED, "16-bit integers from -32768 to"),
    "floats to 255": ((255 * RAMP).astype(np.float32), FLOAT, "floats from 0 to 255, expected 0 to 1"),
    "floats from -1": ((2 * RAMP - 1).astype(np.float32), FLOAT, "floats from -1 to 1, expected 0 to 1"),
    "NaN": (np.full((5, 4), np.nan, np.float32), FLOAT, "floats from nan to nan, expected 0 to 1"),
}


@pytest.mark.parametrize(("values", "kind", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_range_that_cannot_be_known(tmp_path: Path, values: Array, kind: int, words: str) -> None:
    """Values of which nothing says what white is are refused, in datasets by the file's name."""
    path = tmp_path / "x.tif"
    write_tiff(path, values, kind)
    with pytest.raises(DataError, match=words):
        open_image(path)
    with pytest.raises(DataError, match=rf"x\.tif cannot be decoded \({words}"):
        decode([path], 16)


def test_lab_is_refused(tmp_path: Path) -> None:
    """Colors that Pillow cannot convert are refused by their header."""
    Image.new("LAB", (5, 4)).save(tmp_path / "x.tif")
    for call in (open_header, open_image):
        with pytest.raises(DataError, match="colors in CIELAB, expected RGB"):
            call(tmp_path / "x.tif")


ORIGINAL = np.kron(np.random.default_rng(0).integers(0, 256, (3, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8)
STORED = {  # how the pixels of an upright image lie in a file, by its EXIF orientation (EXIF 2.3, 4.6.4)
    1: ORIGINAL,
    2: ORIGINAL[:, ::-1],
    3: ORIGINAL[::-1, ::-1],
    4: ORIGINAL[::-1],
    5: ORIGINAL.transpose(1, 0, 2),
    6: ORIGINAL.transpose(1, 0, 2)[::-1],
    7: ORIGINAL.transpose(1, 0, 2)[::-1, ::-1],
    8: ORIGINAL.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Each orientation gives the upright image, as another decoder turns it; it is ignored unless asked for."""
    path, exif = tmp_path / f"x.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(STORED[orientation]).save(path, exif=exif, quality=100, lossless=True, subsampling=0)
    upright = np.asarray(open_image(path, upright=True)).astype(int)
    assert upright.shape == ORIGINAL.shape
    assert np.abs(upright - ORIGINAL).max() <= 4
    assert np.abs(np.asarray(open_image(path)).astype(int) - STORED[orientation]).max() <= 4
    if suffix != "webp":
        other = decode_image(path.as_posix(), apply_exif_orientation=True).permute(1, 2, 0).numpy()
        assert np.abs(other.astype(int) - upright).max() <= 4


def test_orientation_of_16_bits(tmp_path: Path) -> None:
    """An image of 16 bits is turned, too."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(RAMP16).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(open_image(tmp_path / "x.png", upright=True))[..., 0], RAMP16[::-1, ::-1] >> 8
    )


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0"])
def test_damaged_exif_data(tmp_path: Path, exif: bytes) -> None:
    """An image whose EXIF data cannot be read is read as it lies."""
    Image.fromarray(ORIGINAL).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x.png", upright=True)), ORIGINAL)
