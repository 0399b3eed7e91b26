"""Tests of decoding image files and of the cache of decoded images."""

import errno
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deelbo.data import decoding as photographs
from deelbo.data.decoding import CACHE, Listing, decode, load_decoded
from deelbo.data.integrity import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder ``set`` with seven small images."""
    folder = tmp_path / "set"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def listing(images: Path) -> Listing:
    files = [images / f"{i}.jpg" for i in range(7)]
    return Listing(files[:5], [0, 1, 2, 0, 1], files[5:], [2, 0])


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of files whenever some are decoded."""
    seen: list[int] = []

    def counted(files: Sequence[Path], side: int) -> Tensor:
        seen.append(len(files))
        return decode(files, side)

    monkeypatch.setattr(photographs, "decode", counted)
    return seen


def read(listing: Listing, side: int = 16) -> tuple[Tensor, Tensor]:
    folder = listing.training[0].parent
    return load_decoded(listing, side, "set", folder.parent, folder)


def cached(images: Path) -> list[Path]:
    return sorted((images.parent / CACHE).glob("*"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_other_modes(tmp_path: Path, mode: str) -> None:
    """Grey, palette, transparent and CMYK images, and a PNG with another suffix, are decoded as RGB."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 25, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / "image.jpg"
    picture.save(path, format="JPEG" if mode in ("L", "CMYK") else "PNG")
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
    pixels = decode([path], 16)
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("damage", ["cut", "no image"])
def test_an_undecodable_image_is_named(images: Path, listing: Listing, damage: str) -> None:
    """A truncated image and another file raise one line with the file's path, and nothing is cached."""
    content = (images / "3.jpg").read_bytes()
    (images / "3.jpg").write_bytes(content[: len(content) // 2] if damage == "cut" else b"<html>not found</html>")
    with pytest.raises(
        DataError, match=r"set/3\.jpg cannot be decoded \((truncated or damaged|not an image of a known format)\): "
    ) as raised:
        read(listing)
    assert "\n" not in str(raised.value)
    assert cached(images) == []


def test_decoded_images_are_cached(images: Path, listing: Listing, decodings: list[int]) -> None:
    """The first call decodes every file once; the second reads the same bits from the cache."""
    training, test = read(listing)
    assert decodings == [5, 2]
    assert torch.equal(training, decode(listing.training, 16))
    assert torch.equal(test, decode(listing.test, 16))
    again = read(listing)
    assert decodings == [5, 2]
    assert torch.equal(again[0], training)
    assert torch.equal(again[1], test)
    (path,) = cached(images)
    assert path.name.startswith("set-16-")


def test_changed_tensors_do_not_change_the_cache(images: Path, listing: Listing) -> None:
    """Changing loaded tensors does not change the file that others read."""
    training, _ = read(listing)
    before = training.clone()
    training.zero_()
    assert torch.equal(read(listing)[0], before)


def test_each_size_has_a_file(images: Path, listing: Listing, decodings: list[int]) -> None:
    """Each size has its own cached file, and all of them stay."""
    assert read(listing, 16)[0].shape[2:] == (16, 16)
    assert read(listing, 24)[0].shape[2:] == (24, 24)
    read(listing, 16)
    assert decodings == [5, 2, 5, 2]
    assert len(cached(images)) == 2


@pytest.mark.parametrize("change", ["pixels", "time", "label", "order", "split", "name", "decoder"])
def test_a_stale_cache_is_not_used(
    monkeypatch: pytest.MonkeyPatch, images: Path, listing: Listing, decodings: list[int], change: str
) -> None:
    """Files with other content, time, label, order, split or name, or another Pillow, are decoded again."""
    read(listing)
    files, labels = listing.training, listing.training_labels
    first = files[0]
    stat = first.stat()
    if change == "pixels":
        shutil.copy(files[1], first)
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert first.stat().st_size != stat.st_size
    elif change == "time":
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    elif change == "label":
        listing = Listing(files, [1, *labels[1:]], listing.test, listing.test_labels)
    elif change == "order":
        listing = Listing(files[::-1], labels[::-1], listing.test, listing.test_labels)
    elif change == "split":
        listing = Listing(files[:4], labels[:4], [files[4], *listing.test], [labels[4], *listing.test_labels])
    elif change == "name":
        listing = Listing([first.rename(images / "new.jpg"), *files[1:]], labels, listing.test, listing.test_labels)
    else:
        monkeypatch.setattr("PIL.__version__", "0.0.1")
    training, test = read(listing)
    assert len(decodings) == 4
    assert torch.equal(training, decode(listing.training, 16))
    assert torch.equal(test, decode(listing.test, 16))


def test_the_cache_moves_with_the_data(tmp_path: Path, images: Path, listing: Listing, decodings: list[int]) -> None:
    """Names are hashed relative to the dataset's folder, so a moved folder keeps its cache."""
    read(listing)
    (tmp_path / "elsewhere").mkdir()
    moved = images.rename(tmp_path / "elsewhere" / "set")
    (tmp_path / CACHE).rename(tmp_path / "elsewhere" / CACHE)
    again = Listing(
        [moved / file.name for file in listing.training],
        listing.training_labels,
        [moved / file.name for file in listing.test],
        listing.test_labels,
    )
    read(again)
    assert decodings == [5, 2]


DAMAGED: dict[str, Any] = {
    "empty": b"",
    "no torch file": b"nothing of the kind" * 100,
    "other shapes": {"training": torch.zeros(5, 3, 8, 8, dtype=torch.uint8), "test": torch.zeros(2, 3, 8, 8)},
    "other type": {"training": torch.zeros(5, 3, 16, 16), "test": torch.zeros(2, 3, 16, 16)},
    "other names": {"pool": torch.zeros(5, 3, 16, 16, dtype=torch.uint8)},
    "no tensors": {"training": 1, "test": 2},
    "no dictionary": [1, 2],
    "cut": None,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_cache_is_replaced(images: Path, listing: Listing, decodings: list[int], damage: str) -> None:
    """A truncated cached file, another file, or one of other content is made again."""
    training = read(listing)[0].clone()
    (path,) = cached(images)
    content = path.read_bytes()
    path.unlink()  # torch has the old file mapped
    if DAMAGED[damage] is None:
        path.write_bytes(content[:-200])
    elif isinstance(DAMAGED[damage], bytes):
        path.write_bytes(DAMAGED[damage])
    else:
        torch.save(DAMAGED[damage], path)
    assert torch.equal(read(listing)[0], training)
    assert decodings == [5, 2, 5, 2]
    assert torch.equal(read(listing)[0], training)
    assert decodings == [5, 2, 5, 2]
    assert cached(images) == [path]


@pytest.mark.parametrize(
    "call", ["pathlib.Path.mkdir", "tempfile.mkdtemp", "torch.save", "os.fsync", "pathlib.Path.replace"]
)
def test_an_unwritable_folder(
    monkeypatch: pytest.MonkeyPatch, images: Path, listing: Listing, decodings: list[int], call: str
) -> None:
    """On a read-only or full disk the images are decoded each time, and no file is left behind."""

    def refuse(*given: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        for times in (1, 2):
            training, _ = read(listing)
            assert torch.equal(training, decode(listing.training, 16))
            assert decodings == [5, 2] * times
    assert cached(images) == []


def test_concurrent_readers(images: Path, listing: Listing) -> None:
    """Processes that start together all get the right images and leave one complete file."""
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: read(listing), range(4)))
    for training, test in results:
        assert torch.equal(training, decode(listing.training, 16))
        assert torch.equal(test, decode(listing.test, 16))
    assert [path.suffix for path in cached(images)] == [".pt"]


def test_an_interrupted_writer_leaves_no_cached_file(
    monkeypatch: pytest.MonkeyPatch, images: Path, listing: Listing, decodings: list[int]
) -> None:
    """A process that dies while it writes leaves nothing that is read as the cache."""

    class Killed(BaseException):
        pass

    def die(content: object, file: Any) -> None:
        file.write(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", die)
        with pytest.raises(Killed):
            read(listing)
    assert [path.suffix for path in cached(images)] in ([], [".part"])
    read(listing)
    assert decodings == [5, 2, 5, 2]


def test_the_cache_has_the_images_permissions(images: Path, listing: Listing) -> None:
    """The cached file has the images' permissions, so that users of a shared folder share it."""
    listing.training[0].chmod(0o644)
    read(listing)
    (path,) = cached(images)
    assert path.stat().st_mode & 0o777 == 0o644
