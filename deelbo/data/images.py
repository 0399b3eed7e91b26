"""Images as one uint8 tensor on the device, and what is done to a batch of them there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Geometry", "Images", "Normalization", "resize_side"]


AT_ONCE = 512  # images in floating point at one time


@dataclass(frozen=True)
class Images:
    """Labeled images. ``pixels``: uint8 (n, C, H, W); ``labels``: int64 (n,), from 0 to ``num_classes`` - 1."""

    pixels: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def contrast(self) -> tuple[Tensor, Tensor]:
        """Each image's channel means and channel standard deviations, of pixels scaled to [0, 1]; both (n, C)."""
        means, stds = [], []
        for part in self.pixels.split(AT_ONCE):
            pixels = part.float().div_(255).flatten(2)
            means.append(pixels.mean(2))
            stds.append(pixels.std(2))
        return torch.cat(means), torch.cat(stds)

    def take(self, indices: Tensor) -> Images:
        """Those images, in that order."""
        return Images(self.pixels[indices], self.labels[indices], self.num_classes)

    def to(self, device: torch.device) -> Images:
        """The same images on another device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.num_classes)


@dataclass(frozen=True)
class Normalization:
    """Channel means and standard deviations of pixels scaled to [0, 1]; each (C,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Images, chosen: Tensor | None = None) -> Normalization:
        """The mean over images of each image's channel mean, and of each image's channel standard deviation.

        ``chosen``: indices of the images that count; all where None.
        """
        means, stds = images.contrast  # of all images, as the next split asks for others of the same set
        rows = slice(None) if chosen is None else chosen
        return cls(means[rows].mean(0), stds[rows].mean(0).clamp_min(1e-6))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 255, uint8 or float (B, C, H, W), to normalized float32 of that shape."""
        scaled = pixels / 255
        return scaled.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


def resize_side(crop: int) -> int:
    """The side that images are resized to where the network sees ``crop``: 256 for 224, others in proportion."""
    return round(crop * 256 / 224)


@dataclass(frozen=True)
class Geometry:
    """Which pixels of an image the network sees: brought to ``side``, padded, cropped, flipped; all on the device.

    Resizing and normalizing commute, as both are linear and a resized pixel is an average, so that pixels are
    normalized last.

    Attributes:
        side: images stored at another size are resized to side x side, bilinear, their aspect not kept.
        crop: side of what the network sees: a random place for each training image, the center in evaluation.
        pad: zeros (black) around training images before they are cropped.
        flip: whether half of the training images, at random, are mirrored left to right.
    """

    side: int
    crop: int
    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.side or self.pad < 0:
            raise ValueError(f"a crop must fit: got crop {self.crop} of side {self.side}, padded by {self.pad}")

    @property
    def slack(self) -> int:
        """How far a training crop can be from the upper or left edge, in pixels."""
        return self.side + 2 * self.pad - self.crop

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Where to crop each of ``count`` training images; int64 (2 or 3, count): rows from the top, columns from
        the left, and with ``flip`` 0 or 1, 1 for mirrored."""
        places = torch.randint(0, self.slack + 1, (2, count), generator=generator)
        if not self.flip:
            return places
        return torch.cat([places, torch.randint(0, 2, (1, count), generator=generator)])

    def training(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Every image of the batch cropped at its own place.

        Args:
            pixels: uint8 (B, C, H, W) as stored.
            drawn: what `draw` gave for these images, on their device.

        Returns:
            (B, C, crop, crop), from 0 to 255: uint8, or float32 where the images had to be resized.
        """
        pixels = self._at_side(pixels)
        if self.pad:
            pixels = F.pad(pixels, (self.pad,) * 4)
        if not self.slack and not self.flip:
            return pixels
        batch, ahead = len(pixels), torch.arange(self.crop, device=pixels.device)
        rows, columns = drawn[0, :, None] + ahead, drawn[1, :, None] + ahead
        if self.flip:
            columns = torch.where(drawn[2, :, None] > 0, columns.flip(1), columns)
        which = torch.arange(batch, device=pixels.device)[:, None, None]
        # one gather for the whole batch, of whole pixels: what comes is channels_last in memory
        return pixels.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def evaluation(self, pixels: Tensor) -> Tensor:
        """The center of every image; shapes and types as for `training`."""
        edge = (self.side - self.crop) // 2
        return self._at_side(pixels)[:, :, edge : edge + self.crop, edge : edge + self.crop]

    def _at_side(self, pixels: Tensor) -> Tensor:
        size = (self.side, self.side)
        if pixels.shape[2:] == size:
            return pixels
        smaller = pixels.shape[2] > self.side or pixels.shape[3] > self.side
        return F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False, antialias=smaller)
