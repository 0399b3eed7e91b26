"""Datasets in memory. The registry needs no torch; the classes of examples are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deelbo.data.folders import ImageSource
from deelbo.data.registry import (
    DATASETS,
    TASKS,
    Source,
    TaskEntry,
    check_task,
    crop_size,
    data_folder,
    download_task,
    find_task,
    is_embedded,
    load_task,
    source_from,
)
from deelbo.data.texts import TextSource

if TYPE_CHECKING:
    from deelbo.data.dataset import Split, Task
    from deelbo.data.examples import Examples, Transform
    from deelbo.data.images import Geometry, Images, ImageTransform, Normalization

__all__ = [
    "DATASETS",
    "TASKS",
    "Examples",
    "Geometry",
    "ImageSource",
    "ImageTransform",
    "Images",
    "Normalization",
    "Source",
    "Split",
    "Task",
    "TaskEntry",
    "TextSource",
    "Transform",
    "check_task",
    "crop_size",
    "data_folder",
    "download_task",
    "find_task",
    "is_embedded",
    "load_task",
    "source_from",
]

_MODULES = {
    "dataset": ("Split", "Task"),
    "examples": ("Examples", "Transform"),
    "images": ("Geometry", "ImageTransform", "Images", "Normalization"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"deelbo.data.{module}"), name)
    raise AttributeError(f"module 'deelbo.data' has no attribute {name!r}")
