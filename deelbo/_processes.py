"""Draws of the weights that are the same in all processes of data-parallel training."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

RELATIVE_TOLERANCE = 1e-6  # between sums over the same weights on different devices


def world_size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_same(weights: Tensor, num_examples: int, kappa: float) -> None:
    """Raise RuntimeError in all processes where they have other weights (D,), N or kappa."""
    names = ("D", "N", "kappa", "sum of weights", "norm of weights")
    summary = [weights.numel(), num_examples, kappa, weights.double().sum(), weights.double().norm()]
    own = torch.tensor([float(number) for number in summary], dtype=torch.float64, device=weights.device)
    others = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(others, own)
    for name, values in zip(names, torch.stack(others).T.tolist(), strict=True):
        if max(values) - min(values) > RELATIVE_TOLERANCE * max(map(abs, values)):
            raise RuntimeError(
                f"the {len(others)} processes train different models ({name} from {min(values):g} to {max(values):g}): "
                "load the same weights in each, or wrap the model in DistributedDataParallel first; num_examples "
                "counts the examples of all processes together"
            )


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Copy the tensors of process 0 to all processes, in place."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


def share_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return a generator that continues process 0's in all processes: every draw is what process 0 alone would draw.

    The original is then seeded from its own next number, as what it gives next is what the new generator gives.
    """
    if generator is None:
        generator = (
            torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        )
    state = generator.get_state().to(device)
    dist.broadcast(state, src=0)
    shared = torch.Generator(device)
    shared.set_state(state.cpu())
    generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=device)))
    return shared


def average_(tensor: Tensor) -> None:
    """Replace a tensor by its mean over the processes."""
    dist.all_reduce(tensor)
    tensor.div_(world_size())


def check_not_sharded(model: nn.Module) -> None:
    """Raise ValueError where the model's weights are split over processes."""
    kinds = {type(p).__name__ for p in model.parameters()} | {type(module).__name__ for module in model.modules()}
    sharded = kinds & {"DTensor", "FlatParameter", "FullyShardedDataParallel"}
    if sharded or any(hasattr(p, "ds_id") for p in model.parameters()):  # ds_id: DeepSpeed's ZeRO-3
        found = ", ".join(sorted(sharded)) or "ZeRO-3"
        raise ValueError(
            f"the model's weights are split over processes ({found}), and LearnedL2 needs all of them in each: use "
            "DistributedDataParallel"
        )
