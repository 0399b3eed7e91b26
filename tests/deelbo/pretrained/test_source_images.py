"""Tests of source images: streaming, repeatable random crops, and refusal of unreadable files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from deelbo.pretrained.source_images import SourceImages
from tests.helpers.refusals import refusal_of

Grey = Callable[[str, int, int], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def grey(folder: Path) -> Grey:
    """Write one image of one grey level, or the two classes of most tests."""

    def write(name: str, level: int, side: int) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side + 3), level).save(path)
        return path

    return write


@pytest.fixture
def seven(grey: Grey, folder: Path) -> Path:
    """Return a folder of seven images of two classes, each with its own grey level."""
    for number in range(7):
        grey(f"{'cat' if number < 3 else 'dog'}/{number}.png", 30 * number + 20, 20 + 5 * number)
    return folder


def levels(x: Tensor) -> list[int]:
    """Return the grey level of each normalized image."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = (x * std[:, None, None] + mean[:, None, None]) * 255
    torch.testing.assert_close(rgb, rgb[:, :1, :1, :1].expand_as(rgb), rtol=0, atol=1e-3)
    return [round(float(image.mean())) for image in rgb]


def test_a_pass_sees_every_image_once(seven: Path) -> None:
    """A pass has each image once, as a normalized RGB crop, with its folder's class."""
    images = SourceImages(seven, image_size=8)
    assert (len(images), images.num_classes) == (7, 2)
    seen: list[tuple[int, int]] = []
    for x, y in images.batches(1, torch.Generator()):
        assert x.shape == (1, 3, 8, 8)
        assert x.dtype == torch.float32
        seen += zip(levels(x), y.tolist(), strict=True)
    assert sorted(seen) == [(30 * number + 20, int(number >= 3)) for number in range(7)]
    assert seen != sorted(seen)


def test_the_partial_batch_is_dropped(seven: Path) -> None:
    """Seven images give two batches of three, or one batch of seven where nine are asked for."""
    images = SourceImages(seven, 8)
    assert [len(y) for _, y in images.batches(3, torch.Generator())] == [3, 3]
    assert [len(y) for _, y in images.batches(9, torch.Generator())] == [7]


@pytest.mark.parametrize(("most", "sizes"), [(4, [2, 2]), (5, [2, 2]), (1, [2]), (100, [2, 2, 2])])
def test_a_limited_pass(seven: Path, most: int, sizes: list[int]) -> None:
    """A pass over a limited number of images has whole batches, at least one."""
    assert [len(y) for _, y in SourceImages(seven, 8).batches(2, torch.Generator(), max_images=most)] == sizes


@pytest.fixture
def ramps(folder: Path) -> Path:
    """Return four images with a ramp from left to right, which shows every crop and flip."""
    for number in range(4):
        path = folder / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90).resize((40, 40)).save(path)
    return folder


def test_crops_are_repeatable(ramps: Path) -> None:
    """The generator alone determines order and crops, whatever the number of workers."""

    def one_pass(seed: int, workers: int) -> Tensor:
        torch.rand(seed + workers)  # moves the global generator
        before = torch.random.get_rng_state()
        batches = SourceImages(ramps, 8).batches(2, torch.Generator().manual_seed(seed), workers)
        found = torch.cat([x for x, _ in batches])
        assert torch.equal(torch.random.get_rng_state(), before)
        return found

    first = one_pass(1, workers=0)
    assert torch.equal(one_pass(1, workers=0), first)
    assert torch.equal(one_pass(1, workers=2), first)
    assert not torch.equal(one_pass(2, workers=0), first)


def test_crops_differ(ramps: Path) -> None:
    """Equal images get different crops and flips, and others in the next pass."""
    images, generator = SourceImages(ramps, 8), torch.Generator().manual_seed(0)
    x = torch.cat([x for _ in range(4) for x, _ in images.batches(4, generator)])
    assert len({image.numpy().tobytes() for image in x}) > 12
    rising = (x[:, 0, 4, -1] > x[:, 0, 4, 0]).tolist()
    assert 2 <= sum(rising) <= 14


def refusal(folder: Path) -> str:
    return refusal_of(SourceImages, folder, 8)


def test_a_folder_without_images(folder: Path, grey: Grey) -> None:
    """A missing folder, one without classes or with a single one, and a class without images are refused."""
    assert f"{folder} is not a folder" in refusal(folder)
    folder.mkdir()
    assert f"any class folder in {folder}" in refusal(folder)
    image = grey("cat/0.png", 9, 9)
    assert f"{folder} has one class, cat" in refusal(folder)
    assert f"{image} is not a folder" in refusal(image)
    (folder / "dog").mkdir()
    (folder / "dog" / "notes.txt").write_text("text")
    assert "for the classes dog: give a folder of images for each class" in refusal(folder)


def test_images_are_upright(folder: Path) -> None:
    """A photograph that lies on its side in its file is turned: in each crop the sky is above."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for name in ("cat/0.jpg", "dog/1.jpg"):
        (folder / name).parent.mkdir(parents=True)
        Image.linear_gradient("L").rotate(-90).convert("RGB").save(folder / name, exif=exif)  # bright at the left
    x = torch.cat([x for _ in range(4) for x, _ in SourceImages(folder, 8).batches(2, torch.Generator())])
    assert (x[:, :, 0] > x[:, :, -1]).all()


def test_headers_are_checked(seven: Path) -> None:
    """A file that is no image, and colors of an unknown kind, are named without decoding anything."""
    images = SourceImages(seven, 8)
    images.check_headers()
    Image.new("LAB", (5, 4)).save(seven / "dog" / "5.png", format="TIFF")
    (seven / "dog" / "6.png").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"dog/5.png cannot be decoded \(colors in CIELAB, expected RGB\): delete it"):
        images.check_headers()
    (seven / "dog" / "5.png").write_bytes((seven / "dog" / "4.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"dog/6.png cannot be decoded \(not an image of a known format\): delete it, copy"
    ):
        images.check_headers()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cut", [0, 60])
def test_an_undecodable_image(seven: Path, workers: int, cut: int) -> None:
    """An empty or truncated image is named in one line, also by a worker."""
    path = seven / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cannot be decoded") as error:
        list(SourceImages(seven, 8).batches(7, torch.Generator(), workers))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
