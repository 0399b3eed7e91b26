"""Tests of resizing, cropping and flipping, against torchvision's transforms and Pillow, image by image."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from deelbo.data import Geometry


def pictures(n: int, side: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8)


def drawn(geometry: Geometry, n: int, seed: int = 1) -> Tensor:
    return geometry.draw(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("stored", "side", "crop"), [(8, 37, 32), (32, 37, 32), (48, 37, 32), (32, 256, 224)])
@pytest.mark.parametrize("flip", [False, True])
def test_training_is_torchvisions_resize_crop_and_flip(stored: int, side: int, crop: int, flip: bool) -> None:
    """A training image is torchvision's resize, crop at the drawn position and horizontal flip of it."""
    pixels, geometry = pictures(6, stored), Geometry(side, crop, flip=flip)
    plan = drawn(geometry, 6)
    result = geometry.training(pixels, plan)
    assert result.shape == (6, 3, crop, crop)
    mirrored = plan[2].tolist() if flip else [0] * 6
    assert set(mirrored) == ({0, 1} if flip else {0})
    for i, image in enumerate(pixels):
        resized = transforms.resize(image.float(), [side, side], antialias=True)
        expected = transforms.crop(resized, int(plan[0, i]), int(plan[1, i]), crop, crop)
        if mirrored[i]:
            expected = transforms.horizontal_flip(expected)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [16, 17])
def test_images_of_the_right_size_are_copied_exactly(side: int) -> None:
    """Images stored at ``side`` stay uint8: the result is a slice of each image, mirrored if drawn so."""
    pixels, geometry = pictures(50, side), Geometry(side, 12, flip=True)
    plan = drawn(geometry, 50)
    result = geometry.training(pixels, plan)
    assert result.dtype == torch.uint8
    for image, (row, column, mirrored), seen in zip(pixels.numpy(), plan.T.tolist(), result.numpy(), strict=True):
        expected = image[:, row : row + 12, column : column + 12]
        np.testing.assert_array_equal(seen, expected[:, :, ::-1] if mirrored else expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_padding_and_flip_together(pad: int, flip: bool) -> None:
    """The image is padded with zeros, cropped, and then mirrored if the geometry has flips."""
    pixels, geometry = pictures(60, 6) | 1, Geometry(6, 6, pad=pad, flip=flip)
    plan = drawn(geometry, 60)
    result = geometry.training(pixels, plan)
    assert result.dtype == torch.uint8
    for image, (row, column, *mirrored), seen in zip(pixels, plan.T.tolist(), result, strict=True):
        expected = transforms.crop(transforms.pad(image, [pad] * 4), row, column, 6, 6)
        assert torch.equal(seen, transforms.horizontal_flip(expected) if any(mirrored) else expected)


def test_every_crop_occurs() -> None:
    """Rows and columns of the crop independently take every value from 0 to the slack; both flips occur."""
    geometry = Geometry(8, 5, flip=True)
    plan = drawn(geometry, 4000)
    assert geometry.slack == 3
    assert plan.dtype == torch.int64
    seen = {tuple(place) for place in plan.T.tolist()}
    assert seen == {(row, column, flip) for row in range(4) for column in range(4) for flip in (0, 1)}
    counts = torch.bincount(plan[0] * 8 + plan[1] * 2 + plan[2], minlength=32)
    assert int(counts.min()) > 4000 / 32 * 0.6


@pytest.mark.parametrize("most", [1, 3])
def test_crops_without_flips_draw_fixed_random_numbers(most: int) -> None:
    """Padding by p draws (2, n) integers from 0 to 2p and nothing else, so that old records stay valid."""
    generator, oracle = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    plan = Geometry(16, 16, pad=most).draw(40, generator)
    assert torch.equal(plan, torch.randint(0, 2 * most + 1, (2, 40), generator=oracle))
    assert torch.equal(generator.get_state(), oracle.get_state())


def test_flips_do_not_change_the_crops() -> None:
    """With flips, a seed gives the same crops as without."""
    assert torch.equal(drawn(Geometry(8, 5, flip=True), 30)[:2], drawn(Geometry(8, 5), 30))


@pytest.mark.parametrize(("stored", "side", "crop"), [(32, 256, 224), (256, 256, 224), (37, 37, 32), (16, 16, 16)])
def test_evaluation_is_torchvisions_center_crop(stored: int, side: int, crop: int) -> None:
    """An evaluated image is torchvision's CenterCrop after a resize, without padding."""
    pixels = pictures(3, stored)
    resized = pixels if stored == side else transforms.resize(pixels.float(), [side, side], antialias=True)
    expected = transforms.center_crop(resized, [crop, crop])
    for geometry in (Geometry(side, crop, flip=True), Geometry(side, crop, pad=2)):
        result = geometry.evaluation(pixels)
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


def test_a_rectangular_image() -> None:
    """An image of another aspect ratio is resized to side x side."""
    pixels = torch.randint(0, 256, (2, 3, 20, 50), dtype=torch.uint8)
    expected = transforms.resize(pixels.float(), [37, 37], antialias=True)
    torch.testing.assert_close(Geometry(37, 37).evaluation(pixels), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("side", "crop", "pad"), [(8, 9, 0), (8, 0, 0), (8, 8, -1), (8, 9, 2)])
def test_a_crop_that_does_not_fit_is_refused(side: int, crop: int, pad: int) -> None:
    """A crop that is empty or larger than the image, and a negative padding, raise a ValueError."""
    with pytest.raises(ValueError, match=f"got crop {crop} of side {side}, padded by {pad}"):
        Geometry(side, crop, pad)
