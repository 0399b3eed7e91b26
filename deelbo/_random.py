"""Random numbers: seeding for a block, and normal numbers drawn by several threads."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

MIN_STREAM_SIZE = 1 << 18  # numbers
MAX_STREAMS = 16


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the generators of the CPU and of a CUDA ``device`` (no other GPU's) in the block, then restore them."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for gpu in cuda:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def fill_normal_(vector: Tensor, std: Tensor, generator: torch.Generator | None) -> None:
    """Fill ``vector`` (D,) with draws from N(0, std^2), which depend on the generator and on D alone.

    torch draws with one thread on a CPU. There, a long vector has up to 16 equal parts, each with a generator of its
    own that is seeded from ``generator``, so that any number of threads draws the same numbers.
    """
    num_streams = min(vector.numel() // MIN_STREAM_SIZE, MAX_STREAMS)
    if vector.device.type != "cpu" or num_streams < 2:
        torch.randn(vector.shape, generator=generator, out=vector).mul_(std)
        return
    seeds = torch.randint(2**32, (num_streams,), generator=generator).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scale = float(std)
    if math.isnan(scale):  # of a run that diverges: as above, the draws are NaN, which `normal_` would refuse
        vector.fill_(scale)
        return

    def fill(part: Tensor, source: torch.Generator) -> None:
        for piece in part.split(MIN_STREAM_SIZE):  # torch passes over its numbers twice: they stay in the cache
            piece.normal_(0, scale, generator=source)

    with ThreadPoolExecutor(min(num_streams, torch.get_num_threads())) as threads:
        list(threads.map(fill, vector.chunk(num_streams), generators))
