"""Tests of files that would run code or that name files elsewhere: they are refused, and nothing is run."""

import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import UnidentifiedImageError
from safetensors.torch import save

from deelbo.data import check_task, load_task
from deelbo.data.cifar_pickle import read_batch
from deelbo.data.decoding import decode, open_image
from deelbo.data.integrity import DataError
from deelbo.pretrained.swag_files import read_swag
from deelbo.pretrained.tensor_files import read_tensors
from tests.helpers.refusals import Bomb, refusal_of

FUZZ = float(os.environ.get("DEELBO_FUZZ", "1"))
CIFAR10 = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


@pytest.fixture
def own(data_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies one dataset's folder, to be changed."""
    return lambda name: Path(shutil.copytree(data_root / name, tmp_path / name))


@pytest.mark.parametrize("file", CIFAR10)
def test_a_batch_cannot_run_code(own: Callable[[str], Path], bomb: Bomb, file: str) -> None:
    """A CIFAR-10 file that would run code is refused by the name of its function, wherever that is in the file."""
    path = own("cifar-10-batches-py") / file
    good = pickle.loads(path.read_bytes())  # noqa: S301
    for bad in (bomb, good | {"data": bomb}, good | {"more": [{"a": (bomb,)}]}):
        for protocol in (0, 2, 5):
            path.write_bytes(pickle.dumps(bad, protocol=protocol))
            words = refusal_of(load_task, "CIFAR-10", path.parent.parent, 32, verify=False)
            assert "(UnpicklingError: it names posix.mkdir, which is not read as it could run code): run" in words
            assert refusal_of(check_task, "CIFAR-10", path.parent.parent, verify=False) == words
            assert "is another version" in refusal_of(check_task, "CIFAR-10", path.parent.parent, verify=True)


NAMES = [
    "builtins eval",
    "os system",
    "numpy load",
    "numpy.core.multiarray scalar",
    "_codecs decode",
    "\x1b[2J x",
    "a b.c",
]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_functions_of_arrays_are_accepted(own: Callable[[str], Path], name: str) -> None:
    """A batch that names any function but those of an array, even numpy's, is refused."""
    path = own("cifar-10-batches-py") / "test_batch"
    module, function = name.split(" ")
    path.write_bytes(f"c{module}\n{function}\n(S'1'\ntR.".encode())
    words = refusal_of(check_task, "CIFAR-10", path.parent.parent, verify=False)
    assert repr(f"{module}.{function}").strip("'") in words


def test_a_batch_of_python_2_is_read(tmp_path: Path) -> None:
    """A batch of Python 2 and numpy 1, as the official ones are, is read exactly."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    raw = pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
    kind = b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffI0\ntb"
    state = b"(I1\n(I2\nI3072\nt" + kind + b"I00\nT" + len(raw).to_bytes(4, "little") + raw + b"tb"
    text = b"\x80\x02}(U\x06labels](I7\nI3\neU\x04data" + array + state + b"u."
    (tmp_path / "old").write_bytes(text)
    expected = pickle.loads(text, encoding="latin1")  # noqa: S301
    found, labels = read_batch(tmp_path / "old")
    assert labels == expected["labels"] == [7, 3]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(expected["data"], pixels)


ARRAYS = {
    "objects": np.array([[1, "a"]], dtype=object),
    "fields": np.zeros((2, 3), dtype=[("a", "u1"), ("b", "O")]),
    "texts": np.array([["a" * 3072]]),
    "times": np.zeros((1, 3072), dtype="M8[s]"),
    "one dimension": np.zeros(3072, dtype=np.uint8),
    "other images": np.zeros((2, 6144), dtype=np.uint8),
    "no array": [1, 2],
    "none": None,
}


@pytest.mark.parametrize("data", ARRAYS.values(), ids=ARRAYS)
def test_other_arrays_are_refused(own: Callable[[str], Path], data: Any) -> None:
    """Data that are not an array of 3,072 plain numbers per image are refused before numpy sees them."""
    path = own("cifar-10-batches-py") / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": data, "labels": [0, 1]}, protocol=2))
    assert "CIFAR-10 cannot be read in" in refusal_of(check_task, "CIFAR-10", path.parent.parent, verify=False)


@pytest.mark.parametrize(
    "labels", [[0.5] * 80, ["0"] * 80, [True] * 80, [[0]] * 80, "0" * 80, None, dict.fromkeys(range(80), 0)]
)
def test_other_labels_are_refused(own: Callable[[str], Path], labels: Any) -> None:
    """Labels that are not a list of whole numbers are refused."""
    path = own("cifar-10-batches-py") / "data_batch_1"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | {"labels": labels}, protocol=2))  # noqa: S301
    words = refusal_of(check_task, "CIFAR-10", path.parent.parent, verify=False)
    assert "labels of data_batch_1 are not a list of whole numbers" in words


def test_arrays_of_any_byte_order(tmp_path: Path) -> None:
    """Arrays of other plain types, big-endian or in column order, are read correctly."""
    for kind in ("u1", "<i4", ">i4", ">f8", "?"):
        for order in ("C", "F"):
            pixels = np.asarray(np.arange(2 * 3072).reshape(2, 3072) % 100, dtype=kind, order=order)  # type: ignore[call-overload]
            (tmp_path / "a").write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1]}, protocol=2))
            found = read_batch(tmp_path / "a")[0]
            np.testing.assert_array_equal(found, pixels)
            assert found.dtype == pixels.dtype


def changed(text: bytes, examples: int) -> Iterator[bytes]:
    """Return the bytes with some removed, flipped or doubled, repeatably."""
    chance = random.Random(0)  # noqa: S311
    for _ in range(round(examples * FUZZ)):
        # most of such a file are numbers, in which any change is allowed: its ends say what it is
        at = chance.choice(
            [chance.randrange(min(len(text), 400)), len(text) - 1 - chance.randrange(min(len(text), 400))]
        )
        until = at + chance.randrange(1, 9)
        yield chance.choice(
            [
                text[:at],
                text[:at] + bytes(byte ^ (1 << chance.randrange(8)) for byte in text[at:until]) + text[until:],
                text[:at] + text[until:],
                text[:until] + text[at:],
                text[:at] + chance.choice([b"cos\nsystem\n(S'x'\ntR", b"R", b"b", b"\x93", b"0" * 9]) + text[until:],
            ]
        )


def check_changed(path: Path, text: bytes, read: Callable[[], None]) -> None:
    """Read many changed versions of the file, of which a good part must be refused in one line."""
    refused = []
    for bad in changed(text, 60):
        path.write_bytes(bad)
        try:
            read()
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10 * min(FUZZ, 1)
    assert all(words.isprintable() and len(words) < 700 for words in refused)


def test_changed_batches(own: Callable[[str], Path], tmp_path: Path) -> None:
    """Any bytes of a batch give images and labels, or an error of one line."""
    path = own("cifar-10-batches-py") / "data_batch_3"
    check_changed(path, path.read_bytes(), lambda: check_task("CIFAR-10", tmp_path, verify=False))


def test_changed_idx_files(own: Callable[[str], Path], tmp_path: Path) -> None:
    """Any bytes of an IDX file give images and labels, or an error of one line."""
    path = own("FashionMNIST") / "raw" / "train-labels-idx1-ubyte"
    check_changed(path, path.read_bytes(), lambda: check_task("Fashion-MNIST", tmp_path, verify=False))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_changed_weights(tmp_path: Path, suffix: str) -> None:
    """Any bytes of a file of weights give tensors by name, or an error of one line."""
    path = tmp_path / f"w{suffix}"
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=False)

    def read() -> None:
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())

    check_changed(path, path.read_bytes() if suffix == ".pt" else save(tensors), read)


@pytest.mark.parametrize("zipped", [True, False, None])
@pytest.mark.parametrize("where", ["whole", "state dict", "mean", "three files"])
def test_weights_and_swag_cannot_run_code(tmp_path: Path, bomb: Bomb, where: str, zipped: bool | None) -> None:
    """A pickle in place of weights or a SWAG posterior is refused by the name of its function, and not run."""
    path = tmp_path / "w.pt"
    held = {"whole": bomb, "three files": bomb, "state dict": {"state_dict": {"a": bomb}}}.get(where, {"mean": bomb})
    if zipped is None:
        path.write_bytes(pickle.dumps(held, protocol=2))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=zipped)
    source: Any = dict.fromkeys(("mean", "variance", "factor"), path) if where == "three files" else path
    words = refusal_of(read_tensors, path)
    assert "w.pt" in words
    assert zipped is None or "holds posix.mkdir, which is not read" in words
    assert "w.pt" in refusal_of(read_swag, source, "digits-resnet")


def test_long_names_in_weights(tmp_path: Path) -> None:
    """Long or strange names in a file of weights give a short line."""
    path = tmp_path / "w.pt"
    torch.save({"x\x1b[2J" * 100_000: 1}, path)
    assert "expected a tensor" in refusal_of(read_tensors, path)
    path.write_bytes(b"c" + b"m" * 2_000 + b"\nx\x1b[2J\n.")
    refusal_of(read_tensors, path)


PLACES = ["../../secret", "{folder}/../secret", "/etc/passwd", "a/../Some_Breed00_0", "..\\secret", "\x1b[2J"]


@pytest.mark.parametrize("place", PLACES)
def test_a_list_cannot_name_files_elsewhere(own: Callable[[str], Path], tmp_path: Path, place: str) -> None:
    """A list of Pet's that names anything but a file of its own folder is refused."""
    folder = own("oxford-iiit-pet")
    shutil.copy(next((folder / "images").glob("*.jpg")), tmp_path / "secret.jpg")
    with (folder / "annotations" / "trainval.txt").open("a") as lines:
        lines.write(f"{place.format(folder=folder)} 1 1 1\n")
    words = refusal_of(check_task, "Oxford-IIIT_Pet", tmp_path, verify=False)
    assert re.search("its lists name .*, expected names of images in", words)
    assert refusal_of(load_task, "Oxford-IIIT_Pet", tmp_path, 32, verify=False) == words


def test_an_image_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS file, which Pillow would pass to Ghostscript, is not accepted as an image."""
    program, trace = tmp_path / "bin" / "gs", tmp_path / "trace"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    photograph = tmp_path / "a.jpg"
    photograph.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
        decode([photograph], 8)
    with pytest.raises(UnidentifiedImageError):
        open_image(photograph)
    assert not trace.exists()
