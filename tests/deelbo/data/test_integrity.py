"""Tests of unusable dataset folders: one line says what was found, what was expected and what to do."""

import hashlib
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from deelbo.data import TASKS, check_task, load_task
from deelbo.data import torchvision_datasets as official_module
from deelbo.data.integrity import FLOWERS, PET

FOLDERS = {
    "CIFAR-10": "cifar-10-batches-py",
    "Fashion-MNIST": "FashionMNIST",
    "Oxford-IIIT_Pet": "oxford-iiit-pet",
    "Flowers-102": "flowers-102",
}
REMEDY = (
    "run `deelbo-bench prepare CONFIG` where there is a network, or set `data` / $DEELBO_DATA to a folder that holds a"
    " whole {}"
)


@pytest.fixture
def own(data_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies one dataset's folder, to be damaged."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(data_root / FOLDERS[name], tmp_path / FOLDERS[name]))

    return copied


def idx(shape: tuple[int, ...]) -> bytes:
    """Return an IDX file of zeros, uint8."""
    content = np.zeros(shape, dtype=np.uint8)
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">i4").tobytes() + content.tobytes()


def complaint(name: str, root: Path, verify: bool = False) -> str:
    """Return the error message of loading, which must be that of checking."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as loading:
        load_task(name, root, image_size=32, verify=verify)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as checking:
        check_task(name, root, verify=verify)
    assert str(loading.value) == str(checking.value)
    return str(loading.value)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_folder(name: str, tmp_path: Path, verify: bool) -> None:
    """A root without the dataset's folder, or a missing root, gives the name of the expected folder."""
    for root in (tmp_path, tmp_path / "none"):
        said = complaint(name, root, verify)
        assert said == f"{name} was not found: {root} has no folder {FOLDERS[name]}: {REMEDY.format(FOLDERS[name])}"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_root_that_is_the_folder_itself(name: str, data_root: Path) -> None:
    """If the root is the dataset's own folder, the message names the folder above it."""
    said = complaint(name, data_root / FOLDERS[name])
    assert said.endswith(f"set `data` / $DEELBO_DATA to the folder above it, {data_root}")


@pytest.mark.parametrize(
    ("name", "archive", "gone"),
    [
        ("CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("Oxford-IIIT_Pet", "oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/images"),
        ("Oxford-IIIT_Pet", "oxford-iiit-pet/annotations.tar.gz", "oxford-iiit-pet/annotations"),
        ("Flowers-102", "flowers-102/102flowers.tgz", "flowers-102/jpg"),
    ],
)
def test_an_archive_that_is_not_unpacked(
    own: Callable[[str], Path], tmp_path: Path, name: str, archive: str, gone: str
) -> None:
    """An archive without its unpacked files is reported as not unpacked."""
    own(name)
    shutil.rmtree(tmp_path / gone)
    (tmp_path / archive).write_bytes(b"an archive")
    said = complaint(name, tmp_path)
    assert said.startswith(
        f"{name} is not unpacked: {tmp_path / archive} exists, {tmp_path / gone} does not: unpack it with `tar -xf`, or"
    )


def test_an_idx_file_that_is_not_unpacked(own: Callable[[str], Path], tmp_path: Path) -> None:
    """An archive of a single file is unpacked by gunzip."""
    file = own("Fashion-MNIST") / "raw" / "t10k-labels-idx1-ubyte"
    file.rename(f"{file}.gz")
    said = complaint("Fashion-MNIST", tmp_path)
    found = f"{file}.gz exists, {file} does not"
    assert said.startswith(f"Fashion-MNIST is not unpacked: {found}: unpack it with `gunzip -k`, or run")


@pytest.mark.parametrize(
    ("name", "files", "gone"),
    [
        ("CIFAR-10", 7, ["data_batch_3"]),
        ("CIFAR-10", 7, ["data_batch_2", "test_batch"]),
        ("CIFAR-10", 7, ["batches.meta"]),
        ("Fashion-MNIST", 4, ["raw/t10k-images-idx3-ubyte"]),
        ("Oxford-IIIT_Pet", 2, ["annotations/test.txt"]),
        ("Flowers-102", 2, ["imagelabels.mat", "setid.mat"]),
    ],
)
def test_missing_files(own: Callable[[str], Path], name: str, files: int, gone: list[str]) -> None:
    """An incomplete folder is reported with the number of missing files and the first of them."""
    folder = own(name)
    for file in gone:
        (folder / file).unlink()
    said = f"{name} is incomplete: {len(gone)} of {files} files are missing in {folder}, the first {gone[0]}: "
    assert complaint(name, folder.parent).startswith(said)


@pytest.mark.parametrize(
    ("name", "images", "listed"), [("Oxford-IIIT_Pet", "images", 515), ("Flowers-102", "jpg", 612)]
)
def test_missing_images(own: Callable[[str], Path], name: str, images: str, listed: int) -> None:
    """Missing and empty images are counted, also if their whole folder is missing."""
    folder = own(name)
    task = official_module.list_images({"images": PET, "jpg": FLOWERS}[images], folder.parent, verify=False)
    task.training[7].write_bytes(b"")
    task.test[3].unlink()
    said = complaint(name, folder.parent)
    assert said.startswith(
        f"{name} is incomplete: 2 of {listed} listed images are missing or empty in {folder}, the first"
        f" {task.training[7].name}: "
    )
    shutil.rmtree(folder / images)
    assert f"{listed} of {listed} listed images are missing" in complaint(name, folder.parent)


@pytest.mark.parametrize(
    ("name", "file", "official"),
    [
        ("CIFAR-10", "data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("Fashion-MNIST", "raw/train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        ("Flowers-102", "imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
    ],
)
def test_another_checksum(data_root: Path, name: str, file: str, official: str) -> None:
    """A file with another checksum is reported with both; it is accepted without verification."""
    path = data_root / FOLDERS[name] / file
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    said = complaint(name, data_root, verify=True)
    assert said.startswith(f"{name} is another version: {path} has MD5 {found}, the official one {official}: run")
    assert said.endswith("or take it with `verify_data: false`")
    check_task(name, data_root, verify=False)


@pytest.mark.parametrize(("training", "test", "words"), [(3680, 74, "441 training"), (441, 3669, "74 test")])
def test_another_number_of_images(data_root: Path, training: int, test: int, words: str) -> None:
    """Another number of training or test images is another version; the official numbers are accepted."""
    strict = replace(PET, training_images=training, test_images=test)
    officially = training if "training" in words else test
    with pytest.raises(
        ValueError, match=rf"Pet is another version: {words} images in \S+, officially {officially}: run"
    ):
        official_module.check(strict, data_root, verify=True)
    official_module.check(strict, data_root, verify=False)
    official_module.check(replace(PET, training_images=441, test_images=74), data_root, verify=True)


def test_small_sets_are_refused_by_default(data_root: Path) -> None:
    """Every dataset is verified by default."""
    for name in FOLDERS:
        with pytest.raises(ValueError, match=f"^{name} is another version: "):
            check_task(name, data_root)
        with pytest.raises(ValueError, match=f"^{name} is another version: "):
            load_task(name, data_root)


def test_a_batch_that_is_not_a_pickle(own: Callable[[str], Path]) -> None:
    """A wrong file in place of a batch gives one line with the type of the error."""
    folder = own("CIFAR-10")
    for content, kind in ((b"<html>\n<p>not found\n", "UnpicklingError"), (b"", "EOFError"), (None, "KeyError")):
        (folder / "data_batch_2").write_bytes(pickle.dumps({"nothing": 1}) if content is None else content)
        said = complaint("CIFAR-10", folder.parent)
        assert said.startswith(f"CIFAR-10 cannot be read in {folder} ({kind}: ")
        assert said.endswith(REMEDY.format("cifar-10-batches-py"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0] * 79}, "399 labels and 400 images of uint8, expected one label an image, uint8: run"),
        (
            {"data": np.zeros((80, 3072))},
            "400 labels and 400 images of float64, expected one label an image, uint8: run",
        ),
        ({"labels": [*range(79), 10]}, r"label 10 among the training images of \S+, expected 0 to 9: run"),
    ],
)
def test_impossible_batches(own: Callable[[str], Path], change: dict[str, object], words: str) -> None:
    """Too few labels, labels out of range, and pixels that are not bytes are reported."""
    folder = own("CIFAR-10")
    batch = pickle.loads((folder / "data_batch_5").read_bytes())  # noqa: S301
    (folder / "data_batch_5").write_bytes(pickle.dumps(batch | change))
    assert re.search(words, complaint("CIFAR-10", folder.parent))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train-labels-idx1", b"<html>\n<p>not found\n", "cannot be read in .* (AssertionError): run"),
        ("train-labels-idx1", b"", "cannot be read in .* (ValueError: "),
        (
            "train-images-idx3",
            idx((200, 28, 27)),
            "200 labels and images (200, 28, 27), expected one label an image",
        ),
        ("train-labels-idx1", idx((199,)), "199 labels and images (200, 28, 28), expected one label an image"),
        ("train-labels-idx1", idx((200,))[:-1], "cannot be read in .* (RuntimeError: shape"),
        ("train-labels-idx1", idx((200, 1)), "cannot be read in .* (ValueError: x should have 1 dimension"),
        ("train-labels-idx1", idx((200,)), "is incomplete: no training image of class 1 in .*, expected 10 classes"),
        ("t10k-labels-idx1", idx((30,))[:-1] + b"\x0a", "another version: label 10 among the test images of"),
    ],
)
def test_impossible_idx_files(own: Callable[[str], Path], file: str, content: bytes, words: str) -> None:
    """IDX files of another format or size, and labels out of range or without some class, are reported."""
    folder = own("Fashion-MNIST")
    (folder / "raw" / f"{file}-ubyte").write_bytes(content)
    assert re.search(re.escape(words).replace(r"\.\*", ".*"), complaint("Fashion-MNIST", folder.parent))


@pytest.mark.parametrize(
    ("split", "lines", "words"),
    [
        ("trainval", "one two\n", "cannot be read in .* \\(ValueError: not enough values to unpack"),
        ("trainval", "Some_Breed00_0 breed 1 1\n", "cannot be read in .* \\(ValueError: invalid literal"),
        ("trainval", "Some_Breed00_0 38 1 1\n", "another version: label 37 among .*, expected 0 to 36: run"),
        ("trainval", "Some_Breed00_0 0 1 1\n", "another version: label -1 among .*, expected 0 to 36: run"),
        ("trainval", "Some_Breed00_0 1 1 1\n", "incomplete: no training image of class 1 in .*, expected 37 classes"),
        ("trainval", "", "incomplete: no training image of class 0 in .*, expected 37 classes: run"),
        ("test", "", "is incomplete: no test image in"),
    ],
)
def test_impossible_lists(own: Callable[[str], Path], split: str, lines: str, words: str) -> None:
    """A list of Pet's in another format, with an unknown class, without some class or without images is reported."""
    folder = own("Oxford-IIIT_Pet")
    (folder / "annotations" / f"{split}.txt").write_text(lines)
    assert re.match(f"Oxford-IIIT_Pet .*{words}", complaint("Oxford-IIIT_Pet", folder.parent))


def test_impossible_mat_files(own: Callable[[str], Path]) -> None:
    """A wrong .mat file, one without a split, or an image without a label gives one line."""
    folder = own("Flowers-102")
    savemat(folder / "setid.mat", {"trnid": np.array([[1, 2, 9999]]), "tstid": np.array([[3, 4]])})
    assert complaint("Flowers-102", folder.parent).startswith(
        f"Flowers-102 cannot be read in {folder} (KeyError: 9999)"
    )
    savemat(folder / "setid.mat", {"valid": np.array([[1, 2]])})
    assert "(KeyError: 'trnid')" in complaint("Flowers-102", folder.parent)
    (folder / "imagelabels.mat").write_text("<html>\nnot found\n" * 50)
    assert "Flowers-102 cannot be read in" in complaint("Flowers-102", folder.parent)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_unreadable_folder(monkeypatch: pytest.MonkeyPatch, own: Callable[[str], Path], name: str) -> None:
    """An error of the operating system gives one line."""
    folder = own(name)

    def refuse(*given: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_dir", refuse)
    said = complaint(name, folder.parent)
    assert said.startswith(f"{name} cannot be read in {folder} (PermissionError: [Errno 13] Permission denied): run")


def test_an_undecodable_image(own: Callable[[str], Path]) -> None:
    """An undecodable image makes loading fail with its path; the cheap check does not decode it."""
    folder = own("Flowers-102")
    official_module.list_images(FLOWERS, folder.parent, verify=False).test[5].write_bytes(b"\xff\xd8 no more")
    check_task("Flowers-102", folder.parent, verify=False)
    with pytest.raises(
        ValueError,
        match=r"^\S+image_\d{5}\.jpg cannot be decoded \(not an image of a known format\): put the official file",
    ):
        load_task("Flowers-102", folder.parent, image_size=32, verify=False)


def test_every_dataset_is_tested_here() -> None:
    """Every dataset with files on disk is tested in this module."""
    assert {name for name, entry in TASKS.items() if entry.files is not None} == set(FOLDERS)
