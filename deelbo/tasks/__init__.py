"""A task: a pool of training images, a test set, and the split of a given N and seed."""

from deelbo.tasks.catalogue import (
    TASKS,
    TaskEntry,
    check_task,
    crop_size,
    data_folder,
    download_task,
    load_task,
)
from deelbo.tasks.images import Geometry, Images, Normalisation
from deelbo.tasks.task import Split, Task

__all__ = [
    "TASKS",
    "Geometry",
    "Images",
    "Normalisation",
    "Split",
    "Task",
    "TaskEntry",
    "check_task",
    "crop_size",
    "data_folder",
    "download_task",
    "load_task",
]
