"""Labeled examples of any kind in memory, and the transform that makes batches of a network's inputs from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Labeled examples, all of one shape.

    Attributes:
        inputs: one row per example, in the form that takes least memory; (n, ...).
        labels: int64 (n,), from 0 to ``num_classes`` - 1.
        num_classes: number of classes.
    """

    inputs: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Self:
        """Return the examples with these indices, in their order."""
        return replace(self, inputs=self.inputs[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> Self:
        """Return the examples on another device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Transform:
    """Make batches of a network's input from rows of `Examples.inputs`, on their device. This class changes nothing.

    A subclass for a kind of data overrides the methods that it needs. It is a dataclass: a run continues from a
    checkpoint only if all fields of its transform are the same.
    """

    def fit(self, examples: Examples, rows: Tensor | None = None) -> Self:
        """Return the transform with what it learns from the training examples: ``rows`` (N,) of these, or all."""
        return self

    def to(self, device: torch.device) -> Self:
        """Return the transform on another device."""
        return self

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers of an epoch's augmentation: int64 (k, count), a column for each example."""
        return torch.empty(0, count, dtype=torch.int64)

    def training(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Return a training batch from rows (B, ...) and their columns of `draw` (k, B)."""
        return self.evaluation(inputs)

    def evaluation(self, inputs: Tensor) -> Tensor:
        """Return a batch for evaluation from rows (B, ...)."""
        return inputs

    def to_json(self) -> dict[str, Any]:
        """Return the values of the fitted transform as JSON takes them; `from_json` is the inverse."""
        if fields(self):
            raise TypeError(f"{type(self).__name__} has fields and no to_json: a model with it cannot be saved")
        return {}

    def files(self) -> dict[str, bytes]:
        """Return files that a saved model has beside its weights, such as a tokenizer's, by names without a folder."""
        return {}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Return the transform that `to_json` and `files` describe. They may be anybody's: nothing in them is run."""
        return cls()
