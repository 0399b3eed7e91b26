"""Numerics of forward and backward passes: precision, memory layout, compilation. The rest stays in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Numerics:
    """Settings of forward and backward passes, the same for every method.

    Attributes:
        precision: "float32"; "tf32": float32 whose matrix products and convolutions round their inputs to a mantissa of
            10 bits (NVIDIA GPUs only, elsewhere the same as float32); "bf16": autocast to bfloat16, where operations
            that autocast leaves in float32 run as in "tf32".
        channels_last: whether activations have the channels innermost in memory, which tensor cores prefer.
        compile: whether training steps run through `torch.compile`. Evaluation never does.
    """

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @contextmanager
    def backend_flags(self) -> Iterator[None]:
        """Set torch's global flags for TF32 and for cuDNN's search of algorithms inside the block, then restore them.

        Raises:
            ValueError: the program has set torch's newer ``fp32_precision`` flags, which exclude these.
        """
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        try:
            before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        except RuntimeError as error:
            remedy = "leave them unset and give fit a Numerics instead"
            raise ValueError(f"torch's fp32_precision flags were set before: {remedy}") from error
        inherited = getattr(matmul, "fp32_precision", None) == "none"
        matmul.allow_tf32 = cudnn.allow_tf32 = self.precision != "float32"
        cudnn.benchmark = True
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
            if inherited:  # allow_tf32 has replaced it by a value of its own
                matmul.fp32_precision = "none"

    def autocast(self, device: torch.device) -> torch.autocast:
        """A block in which forward passes run in this precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def to_memory_format(self, x: Tensor) -> Tensor:
        """Return images (B, C, H, W) in the memory layout of `channels_last`, and other inputs contiguous."""
        last = self.channels_last and x.ndim == 4
        return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def compile_model(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """Return the callable that training uses in place of ``model``; it shares the model's weights."""
        # one graph per batch size: with dynamic shapes, earlier calls would decide which kernels run
        return torch.compile(model, dynamic=False) if self.compile else model
