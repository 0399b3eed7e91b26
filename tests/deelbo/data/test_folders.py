"""A user's own images: what is read of a folder or a manifest, what is held out, and what is refused in one line."""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deelbo.data import Images, ImageSource, find_task, load_task
from deelbo.data.decoding import CACHE
from deelbo.data.folders import check_memory, list_images, read_images
from deelbo.data.integrity import DataError
from deelbo.data.listing import LabeledFile, hold_out

CLASSES = ("a cat", "Füchse", "犬")
FOUND = [p / "shared" / "data" / "cifar10-jpeg-subset.zip" for p in Path(__file__).parents]
SUBSET = next((path for path in FOUND if path.is_file()), None)


def write_image(path: Path, color: tuple[int, int, int] = (10, 20, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), color).convert(mode).save(path)
    return path


def write_classes(folder: Path, count: int = 10, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write ``count`` images of each class, of one color an image."""
    for c, label in enumerate(classes):
        for i in range(count):
            write_image(folder / label / f"{i}.png", (80 * c, 7 * i, 0))
    return folder


def source(path: Path, **settings: object) -> ImageSource:
    return ImageSource(str(path), is_manifest=path.suffix == ".csv", **settings)  # type: ignore[arg-type]


def refusal(path: Path, tmp_path: Path) -> str:
    """Return the one line with which images are refused."""
    with pytest.raises(DataError) as raised:
        read_images("photos", source(path), tmp_path / "cache", 16)
    line = str(raised.value)
    assert line.startswith("photos: ") or line.startswith(str(path))
    assert line.isprintable()
    return line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three classes of ten images."""
    return write_classes(tmp_path / "photos")


def test_classes_without_a_test_set(photos: Path, tmp_path: Path) -> None:
    """Of class folders alone a fifth of each class is held out, always the same; classes are sorted."""
    task, listed = read_images("photos", source(photos), tmp_path, 16)
    assert listed.classes == task.class_names == tuple(sorted(CLASSES))
    assert (len(task.pool), len(task.test), task.pool.num_classes, task.name) == (24, 6, 3, "photos")
    assert task.test.labels.bincount().tolist() == [2, 2, 2]
    assert isinstance(task.pool, Images)
    assert task.pool.pixels.shape == (24, 3, 18, 18)
    assert task.pool.pixels.dtype == torch.uint8
    assert list_images("photos", source(photos)) == listed
    for examples, files in ((task.pool, listed.training), (task.test, listed.test)):
        for pixels, label, file in zip(examples.inputs, examples.labels, files, strict=True):
            expected = [80 * CLASSES.index(file.label), 7 * int(file.path.stem), 0]
            assert listed.classes[int(label)] == file.label == file.path.parent.name
            assert pixels[:, 9, 9].tolist() == expected


def test_the_share_that_is_held_out() -> None:
    """A share of each class is held out, at least one image, and the draw depends on the files alone."""
    files = [LabeledFile(Path(f"{label}{i}"), label) for label, n in (("a", 40), ("b", 7), ("c", 2)) for i in range(n)]
    held_out = hold_out(files, 0.25)
    assert Counter(file.label for file in held_out if file.is_test) == {"a": 10, "b": 2, "c": 1}
    assert hold_out(files, 0.25) == held_out
    assert [file.path for file in held_out] == [file.path for file in files]


def test_train_and_test_folders(tmp_path: Path) -> None:
    """With ``train`` and ``test`` nothing is held out, and nested folders belong to their class."""
    write_classes(tmp_path / "photos" / "train", 6)
    write_classes(tmp_path / "photos" / "test", 2)
    write_image(tmp_path / "photos" / "train" / "犬" / "more" / "and more" / "x.JPG")
    entry = find_task("photos", source(tmp_path / "photos"))
    assert (entry.pool_size, entry.test_size, entry.num_classes, entry.smallest_class) == (19, 6, 3, 6)


def test_a_manifest(photos: Path, tmp_path: Path) -> None:
    """A CSV file gives the same dataset as the folders that it lists; with a split, that one."""
    files = list_images("photos", source(photos)).examples
    rows = [f'"{file.path.relative_to(tmp_path)}",{file.label},{("train", "test")[file.is_test]}' for file in files]
    (tmp_path / "labels.csv").write_text("\ufeffpath,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    assert list_images("m", source(tmp_path / "labels.csv")).examples == files
    without = [row.rpartition(",")[0] for row in rows]
    (tmp_path / "two.csv").write_text("label , path\n" + "\n".join(",".join(r.split(",")[::-1]) for r in without))
    assert list_images("m", source(tmp_path / "two.csv")).examples == files


def test_hidden_files_and_files_that_are_no_images(photos: Path) -> None:
    """Hidden files and folders do not count, and files of other types are named beside the images."""
    expected = list_images("photos", source(photos)).examples
    for name in (".DS_Store", ".hidden/x.png", "__MACOSX/犬/0.png", "犬/._0.png", "犬/.git/x.png", "README.md"):
        (photos / name).parent.mkdir(exist_ok=True, parents=True)
        (photos / name).write_text("x")
    (photos / "犬" / "notes.txt").write_text("x")
    os.mkfifo(photos / "犬" / "pipe.png")  # which would be read for ever
    listed = list_images("photos", source(photos))
    assert listed.examples == expected
    assert [path.name for path in listed.others] == ["notes.txt", "pipe.png"]


def test_a_name_that_is_no_text(photos: Path, tmp_path: Path) -> None:
    """A file whose name is not in UTF-8 is read as any other."""
    os.rename(os.fsencode(photos / "犬" / "0.png"), os.fsencode(photos / "犬") + b"/\xff.png")
    assert len(read_images("photos", source(photos), tmp_path, 16)[0].pool) == 24


def test_one_class_in_two_unicode_forms(photos: Path) -> None:
    """The same name of a class, composed and decomposed, as copies from a Mac have it, is one class."""
    write_image(photos / "Fu\u0308chse" / "new.png")
    assert list_images("photos", source(photos)).classes == tuple(sorted(CLASSES))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("I;16", "png"), ("EXIF", "jpg")]
)
def test_kinds_of_images_are_read_right(photos: Path, tmp_path: Path, mode: str, suffix: str) -> None:
    """Gray, palette, transparent, CMYK and 16-bit images have their colors, and EXIF orientation is applied."""
    path, ramp = photos / "犬" / f"0.{suffix}", np.zeros((60, 60), np.uint8)
    ramp[:30] = 200
    (photos / "犬" / "0.png").unlink()
    if mode == "I;16":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(path)
    elif mode == "EXIF":
        exif = Image.Exif()
        exif[274] = 3  # upside down
        Image.fromarray(ramp[::-1].copy()).save(path, exif=exif)
    else:
        Image.fromarray(ramp).convert("RGB").convert(mode).save(path)
    task, listed = read_images("photos", source(photos), tmp_path, 14)
    parts = zip((task.pool, task.test), (listed.training, listed.test), strict=True)
    (pixels,) = (part.inputs[i] for part, files in parts for i, file in enumerate(files) if file.path == path)
    assert pixels[:, :6].float().mean() == pytest.approx(200, abs=3)
    assert pixels[:, 10:].float().mean() == pytest.approx(0, abs=3)


def damage(photos: Path) -> None:
    """Make three files of ``photos`` unreadable: a truncated, an empty, and one that is no image."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "a cat" / "0.png", format="JPEG")
    content = (photos / "a cat" / "0.png").read_bytes()
    (photos / "a cat" / "0.png").write_bytes(content[: len(content) // 2])
    (photos / "a cat" / "1.png").write_bytes(b"")
    (photos / "Füchse" / "2.png").write_text("<html>not found</html>")


def test_unreadable_files(photos: Path, tmp_path: Path) -> None:
    """Unreadable files are counted and named, and nothing is cached; ``skip_unreadable`` goes on without them."""
    damage(photos)
    line = refusal(photos, tmp_path)
    assert f"3 of 30 images in {photos} cannot be read: " in line
    for words in ("a cat/0.png (truncated or damaged)", "a cat/1.png (empty)", "Füchse/2.png (not an image of a known"):
        assert words in line
    assert line.endswith("or set datasets.photos.unreadable to skip (`finetune`: --unreadable skip)")
    assert not (tmp_path / "cache").exists()
    skip = source(photos, skip_unreadable=True)
    first, listed = read_images("photos", skip, tmp_path / "cache", 16)
    assert len(listed.examples) == 27
    assert len(first.pool) + len(first.test) == 27
    again, _ = read_images("photos", skip, tmp_path / "cache", 16)  # from the cache
    assert again.fingerprint == first.fingerprint
    assert "found earlier" in refusal(photos, tmp_path)
    entry = find_task("photos", skip, tmp_path / "cache", 16)
    assert (entry.pool_size, entry.test_size) == (len(first.pool), len(first.test))
    for i in range(3, 9):
        (photos / "a cat" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"training images of class 'a cat' in .* at least 5 are needed"):
        read_images("photos", skip, tmp_path / "cache", 16)


def test_images_are_decoded_once_and_changes_are_noticed(photos: Path, tmp_path: Path) -> None:
    """The cache is outside of the folder, is used by the next process, and another image changes the hash."""
    before = sorted(photos.rglob("*"))
    first, _ = read_images("photos", source(photos), tmp_path / "root", 16)
    assert sorted(photos.rglob("*")) == before
    (cache,) = (tmp_path / "root" / CACHE).iterdir()
    stamp = cache.stat().st_mtime_ns
    assert read_images("photos", source(photos), tmp_path / "root", 16)[0].fingerprint == first.fingerprint
    assert cache.stat().st_mtime_ns == stamp
    write_image(photos / "犬" / "0.png", (255, 255, 255))
    assert read_images("photos", source(photos), tmp_path / "root", 16)[0].fingerprint != first.fingerprint


def test_any_n_is_split_in_proportion(tmp_path: Path) -> None:
    """Classes may differ in size; N is stratified, and one that leaves a class too few is refused with the least N."""
    for label, n in (("a", 60), ("b", 30), ("c", 12)):
        write_classes(tmp_path / "photos", n, (label,))
    task = load_task("photos", tmp_path, 16, source=source(tmp_path / "photos"))
    assert task.pool.labels.bincount().tolist() == [48, 24, 10]
    split = task.split(41, seed=1, validation=True)
    assert split.validation is not None
    assert (len(split.train), len(split.validation)) == (33, 8)
    assert (split.train.labels.bincount() + split.validation.labels.bincount()).tolist() == [24, 12, 5]
    assert len(task.split(82, seed=1, validation=False).train) == 82
    refused = {
        40: "leaves 4 examples of the smallest class, which has 10 of 82: choose n >= 41",
        81: "leaves out less than one example a class of 82",
        83: "larger than the pool of 82",
    }
    for n, words in refused.items():
        with pytest.raises(ValueError, match=words):
            task.split(n, seed=1, validation=False)


def few(photos: Path) -> Path:
    for i in range(6):
        (photos / "犬" / f"{i}.png").unlink()
    return photos


def one(photos: Path) -> Path:
    return write_classes(photos.parent / "one", 10, ("cat",))


def file_of(photos: Path) -> Path:
    return photos / "犬" / "0.png"


def empty(photos: Path) -> Path:
    (photos.parent / "empty" / "heic").mkdir(parents=True)
    (photos.parent / "empty" / "heic" / "1.heic").write_text("x")
    return photos.parent / "empty"


def with_validation(photos: Path) -> Path:
    write_classes(photos.parent / "three" / "train")
    write_classes(photos.parent / "three" / "val")
    return photos.parent / "three"


def capital(photos: Path) -> Path:
    write_classes(photos.parent / "capital" / "Train")
    return photos.parent / "capital"


def loose(photos: Path) -> Path:
    write_image(photos / "loose.jpg")
    return photos


def new_test_class(photos: Path) -> Path:
    write_classes(photos.parent / "new" / "train")
    write_classes(photos.parent / "new" / "test", 1, (*CLASSES, "bird"))
    return photos.parent / "new"


def no_test_image(photos: Path) -> Path:
    write_classes(photos.parent / "no" / "train")
    write_classes(photos.parent / "no" / "test", 1, CLASSES[:2])
    return photos.parent / "no"


def link_out(photos: Path) -> Path:
    (photos / "犬" / "link.png").symlink_to(write_image(photos.parent / "elsewhere.png"))
    return photos


def folder_link(photos: Path) -> Path:
    (photos / "犬" / "again").symlink_to(photos)
    return photos


def broken_link(photos: Path) -> Path:
    (photos / "犬" / "link.png").symlink_to(photos / "gone.png")
    return photos


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda photos: photos / "none", "there is no .*none: correct the path"),
        (file_of, "is a file, expected a folder: unpack an archive, or give a CSV file as csv"),
        (few, "3 training images of class '犬' in .*, with 1 more held out for the test: at least 5 are needed"),
        (one, "has one class, 'cat': give images of at least two classes"),
        (empty, r"has no training images in folders of classes, and 1 files that are no images, such as 1\.heic"),
        (with_validation, "has 'val' beside train, expected test alone: move it away, or rename it to test"),
        (capital, "has the folder 'Train', expected train and test, or folders of classes alone: rename it"),
        (loose, r"loose\.jpg lies in no folder of a class: move it into one, or remove it"),
        (new_test_class, r"bird/0\.png, whose class 'bird' has no training images: add some"),
        (no_test_image, "no test image of class '犬' in .*: add one, or leave the test set out"),
        (link_out, r"the link .*link\.png leads out of it: copy what it leads to, or remove it"),
        (folder_link, "the link .*again is a folder: copy what it leads to"),
        (broken_link, r"the link .*link\.png leads nowhere"),
    ],
)
def test_folders_that_are_refused(photos: Path, tmp_path: Path, change: Callable[[Path], Path], words: str) -> None:
    """A folder that does not say clearly what its classes are is refused in a line that says what to do."""
    assert re.search(words, refusal(change(photos), tmp_path))


def test_links_inside_a_folder(photos: Path) -> None:
    """A link to a file of the folder is read, and the folder itself may be reached by a link."""
    (photos / "犬" / "link.png").symlink_to(photos / "犬" / "0.png")
    (photos.parent / "by link").symlink_to(photos)
    assert len(list_images("photos", source(photos.parent / "by link")).examples) == 31


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column path and label .*: expected path,label or path,label,split, separated by commas"),
        ("path;label\na.png;x\n", r"has no column path and label \(its first line is 'path;label'\)"),
        ("path,class\na.png,x\n", "has no column label"),
        ("title,class\nA title,x\n", r"; of texts, name their column \(text; --text\)$"),
        ("path,label,label\n", "has the column label more than once: rename the others"),
        (
            "path,label\n{0},\n,x\n{1},  \n",
            "3 of 3 rows of .* cannot be used: line 2: no label; line 3: no path; line 4",
        ),
        ("path,label\ngone/1.png,x\n", r"1 of 1 rows of .* cannot be used: line 2: no file .*gone/1\.png: correct"),
        ("path,label\n{0},x\n{0},y\n", "line 3: .* is there twice"),
        ("path,label\n../outside.png,x\n", r"line 2: .*outside\.png is not in .* or leads out of it"),
        ("path,label\n/etc/hostname,x\n", "line 2: /etc/hostname is not in .* or leads out of it"),
        ("path,label\nlink.png,x\n", r"line 2: .*link\.png is not in .* or leads out of it"),
        ("path,label\nphotos,x\n", "line 2: no file .*photos"),
        ("path,label,split\n{0},x,val\n{1},x,\n", "line 2: split 'val', expected train or test; line 3: split ''"),
        ("path,label\n{0},x,y\n", "line 2: more fields than columns"),
        ("path,label\n{0},x\n{1},x\n", "has one class, 'x'"),
        ('path,label\n"{0},x\n', r"cannot be read \(Error: unexpected end of data\): save it as CSV in UTF-8"),
        (b"path,label\n\xff\xfe,x\n", r"cannot be read \(UnicodeDecodeError: .*\): save it as CSV in UTF-8"),
    ],
)
def test_manifests_that_are_refused(photos: Path, tmp_path: Path, text: str | bytes, words: str) -> None:
    """A manifest with anything missing or unclear is refused by its lines."""
    folder = photos.parent / "set"
    folder.mkdir()
    photos.rename(folder / "photos")
    write_image(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    names = "photos/犬/0.png", "photos/犬/1.png"
    manifest = folder / "labels.csv"
    manifest.write_bytes(text if isinstance(text, bytes) else text.format(*names).encode())
    assert re.search(words, refusal(manifest, tmp_path))


def test_a_dataset_larger_than_memory(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that do not fit are refused with the size needed and the memory there is, before one is decoded."""
    with pytest.raises(DataError, match=r"1,000,000 images take 183\.1 GiB of memory at 256 x 256 pixels, 16\.0 GiB"):
        check_memory("photos", 1_000_000, 256, 16 * 2**30)
    monkeypatch.setattr("deelbo.data.folders.available_memory", lambda: 1000)
    assert "set training.image_size lower" in refusal(photos, tmp_path)


@pytest.mark.skipif(SUBSET is None, reason="needs the photographs beside the project")
def test_photographs(tmp_path: Path) -> None:
    """Real photographs as somebody's folder are listed with all their classes."""
    assert SUBSET is not None
    with zipfile.ZipFile(SUBSET) as archive:
        archive.extractall(tmp_path / "unpacked")
    task, listed = read_images("photos", source(tmp_path / "unpacked"), tmp_path / "cache", 16)
    assert task.pool.num_classes == 10
    assert (len(task.pool), len(task.test), listed.others) == (5000, 2000, ())


def test_no_test_set(photos: Path, tmp_path: Path) -> None:
    """With a share of 0 no image is held out; a test set that is there is used, and the cache is read again."""
    write_image(photos / CLASSES[0] / "damaged.png").write_bytes(b"")
    own = source(photos, test_share=0.0, skip_unreadable=True)
    for _ in range(2):
        task, listed = read_images("photos", own, tmp_path / "cache", 16)
        assert (len(task.pool), len(task.test), listed.test) == (30, 0, [])
        assert task.test.labels.dtype == torch.int64
    assert task.fingerprint != read_images("photos", source(photos, skip_unreadable=True), tmp_path, 16)[0].fingerprint
    split = write_classes(tmp_path / "split" / "train").parent
    write_classes(split / "test", count=2)
    assert len(list_images("split", source(split, test_share=0.0)).test) == 6
