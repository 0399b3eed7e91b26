"""Source images in folders, streamed from disk: ImageNet, or any images with one folder a class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["SourceImages"]


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision's weights were trained with
Key = tuple[int, int]
Item = tuple[Tensor, int] | str


class SourceImages(Dataset[Item]):
    """The images of a folder with ImageNet's training transforms; only their paths are held in memory.

    A random resized crop, a mirrored half, and ImageNet's normalization (torchvision's reference training). How an
    image is cropped depends on the generator that `batches` is given, not on the number of workers.

    Args:
        folder: one folder a class, as torchvision's ImageFolder; a class's number is its place in alphabetical order.
        image_size: side of the crops.

    Raises:
        ValueError: no such folder, an empty one or fewer than two classes.
    """

    def __init__(self, folder: str | Path, image_size: int) -> None:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        if not Path(folder).is_dir():
            raise ValueError(f"{folder} is no folder: give one with a folder of images for each class")
        try:
            found = ImageFolder(str(folder))
        except (FileNotFoundError, OSError) as error:  # its message lists all suffixes
            raise ValueError(f"{str(error).split('. ')[0]}: give a folder of images for each class") from error
        if len(found.classes) < 2:
            raise ValueError(f"{folder} has one class, {found.classes[0]}: SWAG needs the images of two at least")
        self.samples: list[tuple[str, int]] = found.samples
        self.num_classes = len(found.classes)
        crop, flip = transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip()
        scale, normalize = transforms.ToTensor(), transforms.Normalize(MEAN, STD)
        self._transform: Any = transforms.Compose([crop, flip, scale, normalize])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Item:
        """The image and its class; or in words why it cannot be read, as an exception would lose them in a worker."""
        from deelbo.data.decoding import open_photograph  # Pillow takes its time

        index, seed = key
        path, label = self.samples[index]
        try:
            image = open_photograph(path)
        except Exception as error:  # PIL lets through whatever a decoder met, SyntaxError and struct.error among others
            return f"{path} cannot be decoded ({type(error).__name__}): delete it or copy it again"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # transforms draw from the global generator alone
            return self._transform(image), label

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        workers: int = 0,
        most: int | None = None,
        pin: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in random order: float32 (B, 3, S, S) and int64 (B,), B = min(batch_size, number of images).

        The last, partial batch is dropped; and all but the first ``most`` images, so far as a whole batch is left.

        Raises:
            ValueError: an image that cannot be decoded, by its path.
        """
        batch_size = min(batch_size, len(self))
        order = torch.randperm(len(self), generator=generator)
        if most is not None:
            order = order[: max(most, batch_size)]
        seeds = torch.randint(2**62, (len(order),), generator=generator)
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_size,
            sampler=list(zip(order.tolist(), seeds.tolist(), strict=True)),
            drop_last=True,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin,
            generator=generator,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise ValueError(batch)
            yield batch


def _collate(items: list[Item]) -> tuple[Tensor, Tensor] | str:
    images, labels = [], []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)
