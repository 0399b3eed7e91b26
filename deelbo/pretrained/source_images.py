"""Source images that are streamed from disk: ImageNet, or any images with one folder per class."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from deelbo.paths import expand_user

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, with which torchvision's weights were trained
CHUNK = 10_000  # images
Item = tuple[Tensor, int] | str


class SourceImages(Dataset[Item]):
    """The images of a folder, which contains one folder per class, as torchvision's ImageFolder.

    Images are turned upright as their EXIF orientation says, which torchvision's ImageFolder does not do.
    They get the transforms of torchvision's reference training: a random resized crop to ``image_size`` pixels, a
    random horizontal flip and normalization. The crops depend on the generator that `batches` is given, not on the
    number of workers. No such folder, an empty one and fewer than two classes raise ValueError.

    Args:
        folder: contains one folder of images per class.
        image_size: side of the crops in pixels.
        mean, std: of the channels, of pixels from 0 to 1; None: ImageNet's.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        folder = expand_user(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give one that contains a folder of images for each class")
        try:
            found = ImageFolder(str(folder))
        except OSError as error:  # its message lists all suffixes
            raise ValueError(f"{str(error).split('. ')[0]}: give a folder of images for each class") from error
        if len(found.classes) < 2:
            raise ValueError(f"{folder} has one class, {found.classes[0]}: SWAG needs images of at least two classes")
        self.samples, self.num_classes = found.samples, len(found.classes)
        crop, flip = transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip()
        normalize = transforms.Normalize(mean or MEAN, std or STD)
        self._transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return the image and its class, or the error message, which an exception would not carry out of a worker."""
        from deelbo.data.decoding import open_image

        index, seed = key
        path, label = self.samples[index]
        try:
            image = open_image(path, upright=True)
        except Exception as error:  # a decoder of PIL may raise anything, such as SyntaxError or struct.error
            return _refusal(path, error)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # transforms draw from the global generator
            return self._transform(image), label

    def check_headers(self) -> None:
        """Raise ValueError for the first file whose header is not that of an image which can be decoded."""
        from deelbo.data.decoding import THREADS, open_header

        def check_one(path: str) -> str | None:
            try:
                open_header(path).close()
            except Exception as error:
                return _refusal(path, error)
            return None

        paths = [path for path, _ in self.samples]
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(paths), CHUNK):  # a pool keeps an object for each call until the last
                for refusal in filter(None, pool.map(check_one, paths[start : start + CHUNK])):
                    raise ValueError(refusal)

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        workers: int = 0,
        max_images: int | None = None,
        pin: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass in random order: float32 (B, 3, S, S) and int64 (B,), B = min(batch_size, number of images).

        The last, partial batch is dropped.

        Args:
            batch_size: images per batch.
            generator: source of the order and of the crops.
            workers: processes that decode; 0: this one.
            max_images: number of images after which the pass ends, but at least one batch; None: all.
            pin: whether batches lie in pinned memory.
        """
        batch_size = min(batch_size, len(self))
        order = torch.randperm(len(self), generator=generator)
        if max_images is not None:
            order = order[: max(max_images, batch_size)]
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


def _refusal(path: str, error: Exception) -> str:
    from deelbo.data.decoding import describe_failure

    return f"{path} cannot be decoded ({describe_failure(error)}): delete it, copy it again, or save it as 8-bit RGB"


def _collate(items: list[Item]) -> Any:
    """Return a batch, or the first error message among the items."""
    return next((item for item in items if isinstance(item, str)), None) or default_collate(items)
