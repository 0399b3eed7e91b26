"""A task: a pool of training images, a test set, and the split of a given N and seed."""

from __future__ import annotations

from deelbo.data.dataset import Split, Task
from deelbo.data.images import Geometry, Images, Normalization
from deelbo.data.registry import TASKS, TaskEntry, check_task, crop_size, data_folder, download_task, load_task

__all__ = [
    "TASKS",
    "Geometry",
    "Images",
    "Normalization",
    "Split",
    "Task",
    "TaskEntry",
    "check_task",
    "crop_size",
    "data_folder",
    "download_task",
    "load_task",
]
