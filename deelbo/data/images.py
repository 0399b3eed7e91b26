"""Images as one uint8 tensor on the device; their normalization, resizing, cropping and flipping there, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from deelbo.data.examples import Examples, Transform

CHUNK = 512  # images in floating point at one time
MAX_SIDE = 10_000  # pixels; of a saved model's images


@dataclass(frozen=True)
class Images(Examples):
    """Labeled images; ``inputs`` are pixels, uint8 (n, C, H, W)."""

    @property
    def pixels(self) -> Tensor:
        """The inputs: uint8 (n, C, H, W)."""
        return self.inputs

    @cached_property
    def contrast(self) -> tuple[Tensor, Tensor]:
        """Channel means and channel standard deviations of each image, with pixels scaled to [0, 1]; both (n, C)."""
        chunks = (part.float().div_(255).flatten(2) for part in self.pixels.split(CHUNK))
        means, stds = zip(*((pixels.mean(2), pixels.std(2)) for pixels in chunks), strict=True)
        return torch.cat(means), torch.cat(stds)


@dataclass(frozen=True)
class Normalization:
    """Channel means and standard deviations of pixels scaled to [0, 1]; each (C,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Images, chosen: Tensor | None = None) -> Normalization:
        """Return the mean over the ``chosen`` images, or all, of each one's channel mean and standard deviation."""
        means, stds = images.contrast  # cached for all images, as the next split needs others of them
        rows = slice(None) if chosen is None else chosen
        return cls(means[rows].mean(0), stds[rows].mean(0).clamp_min(1e-6))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalize pixels from 0 to 255, uint8 or float (B, C, H, W), to float32 of that shape."""
        scaled = pixels / 255
        return scaled.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


def resize_side(crop: int) -> int:
    """Return the side to which images are resized for a crop: 256 for 224, others in proportion."""
    return round(crop * 256 / 224)


@dataclass(frozen=True)
class Geometry:
    """Resizing, padding, cropping and flipping of images, on their device. Sizes are in pixels.

    Pixels are normalized afterwards: resizing and normalizing commute, as a resized pixel is a weighted mean.
    """

    side: int  # images of another size are resized to side x side, bilinear, without keeping their aspect ratio
    crop: int  # side of what the network sees: a random crop of training images, the center in evaluation
    pad: int = 0  # width of the black border around training images before they are cropped
    flip: bool = False  # whether a random half of the training images is mirrored left to right

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.side or self.pad < 0:
            raise ValueError(f"a crop must fit: got crop {self.crop} of side {self.side}, padded by {self.pad}")

    @property
    def slack(self) -> int:
        """Largest distance in pixels of a training crop from the upper or left edge."""
        return self.side + 2 * self.pad - self.crop

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw crops of ``count`` training images: int64 (2, count), rows and columns of the upper left corner.

        With `flip` a third row has 1 for images to be mirrored, else 0.
        """
        places = torch.randint(0, self.slack + 1, (2, count), generator=generator)
        return torch.cat([places, torch.randint(0, 2, (1, count), generator=generator)]) if self.flip else places

    def training(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Crop uint8 images (B, C, H, W), each by its column of `draw`, to (B, C, crop, crop).

        The result is from 0 to 255; uint8, or float32 if the images were resized.
        """
        pixels = self._resize(pixels)
        if self.pad:
            pixels = F.pad(pixels, (self.pad,) * 4)
        if not self.slack and not self.flip:
            return pixels
        ahead = torch.arange(self.crop, device=pixels.device)
        rows, columns = drawn[0, :, None] + ahead, drawn[1, :, None] + ahead
        if self.flip:
            columns = torch.where(drawn[2, :, None] > 0, columns.flip(1), columns)
        image = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        # one gather of whole pixels for the batch; the result is channels_last in memory
        return pixels.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def evaluation(self, pixels: Tensor) -> Tensor:
        """Crop the center of every image; shapes and types as for `training`."""
        edge = (self.side - self.crop) // 2
        return self._resize(pixels)[:, :, edge : edge + self.crop, edge : edge + self.crop]

    def _resize(self, pixels: Tensor) -> Tensor:
        size = (self.side, self.side)
        if pixels.shape[2:] == size:
            return pixels
        smaller = pixels.shape[2] > self.side or pixels.shape[3] > self.side
        return F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False, antialias=smaller)


@dataclass(frozen=True)
class ImageTransform(Transform):
    """Resize, crop, flip and normalize images.

    Attributes:
        geometry: sizes, and what is random in training.
        normalization: learned by `fit`; None before.
    """

    geometry: Geometry
    normalization: Normalization | None = None

    def fit(self, examples: Examples, rows: Tensor | None = None) -> Self:
        if not isinstance(examples, Images):
            raise TypeError(f"an ImageTransform needs Images, got {type(examples).__name__}")
        return replace(self, normalization=Normalization.of(examples, rows))

    def normalized_by(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the transform with these channel means and standard deviations, of pixels from 0 to 1."""
        return replace(self, normalization=Normalization(torch.tensor(mean), torch.tensor(std)))

    def to(self, device: torch.device) -> Self:
        moved = self.fitted
        return replace(self, normalization=Normalization(moved.mean.to(device), moved.std.to(device)))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.geometry.draw(count, generator)

    def training(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        return self.fitted(self.geometry.training(inputs, drawn))

    def evaluation(self, inputs: Tensor) -> Tensor:
        return self.fitted(self.geometry.evaluation(inputs))

    @property
    def fitted(self) -> Normalization:
        """The normalization; ValueError before `fit`."""
        if self.normalization is None:
            raise ValueError("the images' normalization is not known: call fit with the training images first")
        return self.normalization

    def to_json(self) -> dict[str, Any]:
        normalization = {"mean": self.fitted.mean.tolist(), "std": self.fitted.std.tolist()}
        return {"geometry": asdict(self.geometry), "normalization": normalization}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        geometry, normalization = content["geometry"], content["normalization"]
        if not all(type(value) in (int, bool) and value <= MAX_SIDE for value in geometry.values()):
            raise ValueError(f"geometry = {geometry}, expected whole numbers of at most {MAX_SIDE}")
        mean, std = (torch.tensor(normalization[name], dtype=torch.float32) for name in ("mean", "std"))
        if mean.dim() != 1 or mean.shape != std.shape or not bool((std > 0).all() and mean.isfinite().all()):
            raise ValueError("normalization: expected a mean and a positive std for each channel")
        return cls(Geometry(**geometry), Normalization(mean, std))
