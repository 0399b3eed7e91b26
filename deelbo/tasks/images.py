"""Images as one uint8 tensor on the device, and what is done to a batch of them there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Images", "Normalisation", "draw_shifts", "shifted"]


@dataclass(frozen=True)
class Images:
    """Labelled images. ``pixels``: uint8 (n, C, H, W); ``labels``: int64 (n,), from 0 to ``num_classes`` - 1."""

    pixels: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Those images, in that order."""
        return Images(self.pixels[indices], self.labels[indices], self.num_classes)

    def to(self, device: torch.device) -> Images:
        """The same images on another device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.num_classes)


@dataclass(frozen=True)
class Normalisation:
    """Channel means and standard deviations of pixels scaled to [0, 1]; each (C,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Images) -> Normalisation:
        """The mean over images of each image's channel mean, and of each image's channel standard deviation."""
        pixels = images.pixels.float().div_(255).flatten(2)
        return cls(pixels.mean(2).mean(0), pixels.std(2).mean(0).clamp_min(1e-6))

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to normalised float32 (B, C, H, W)."""
        scaled = pixels.float().div_(255)
        return scaled.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


def draw_shifts(count: int, most: int, generator: torch.Generator) -> Tensor:
    """For each of ``count`` images, how far it moves down and across, 0 standing for -most; int64 (2, count)."""
    return torch.randint(0, 2 * most + 1, (2, count), generator=generator)


def shifted(pixels: Tensor, shifts: Tensor, most: int) -> Tensor:
    """Every image of the batch moved by its own -most..most pixels down and across, zeros (black) moving in.

    One gather for the whole batch. ``pixels``: uint8 (B, C, H, W); ``shifts``: as `draw_shifts` gives, on its device.
    """
    if most == 0:
        return pixels
    batch, _, height, width = pixels.shape
    device = pixels.device
    padded = torch.nn.functional.pad(pixels, (most, most, most, most))
    rows = (torch.arange(height, device=device) + shifts[0, :, None])[:, :, None]
    columns = (torch.arange(width, device=device) + shifts[1, :, None])[:, None, :]
    which = torch.arange(batch, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
