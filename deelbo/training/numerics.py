"""How a network is computed: precision, memory layout, compilation. Weights, KL and optimizer stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PRECISIONS", "Numerics"]


PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Numerics:
    """How forward and backward are computed, the same for every method.

    Attributes:
        precision: "float32" throughout; "tf32": float32 whose matrix products and convolutions round their inputs to 10
            bits (NVIDIA GPUs only, elsewhere as float32); "bf16": autocast to bfloat16, what is left in float32 as in
            "tf32".
        channels_last: activations in memory with the channels innermost, as tensor cores want them.
        compile: whether training goes through `torch.compile`. Evaluation does not.
    """

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """Torch's own switches set for the block, put back after: TF32, and cuDNN choosing algorithms by trial."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        try:
            before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        except RuntimeError as error:  # torch lets a program use its old switches or its new ones
            raise ValueError(
                "torch's fp32_precision switches were set before: leave them, precision is a setting of the fit"
            ) from error
        matmul.allow_tf32 = cudnn.allow_tf32 = self.precision != "float32"
        cudnn.benchmark = True
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before

    def autocast(self, device: torch.device) -> torch.autocast:
        """A block whose forward passes run in this precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def laid_out(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) in the memory layout that convolutions follow."""
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def trained_through(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """What to call in training instead of ``model``. It is the same weights, whatever they are at the call."""
        # a graph for each batch size, or what was trained before would decide which kernels run
        return torch.compile(model, dynamic=False) if self.compile else model
