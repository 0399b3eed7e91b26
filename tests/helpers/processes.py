"""Real processes that train together over gloo on loopback."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_processes(count: int, job: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Call ``job(*arguments)`` in ``count`` new processes of one group; return what each returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_enter, (count, port, job, folder, arguments), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _enter(rank: int, count: int, port: int, job: Callable[..., Any], folder: Path, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try:
        torch.save(job(*arguments), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
