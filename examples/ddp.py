"""DistributedDataParallel: torchrun --nproc_per_node 2 examples/ddp.py."""

import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import deelbo


def train(model, batches, reg, opt, micro_batches=1):
    """Train on this rank's share of each batch, split into micro-batches whose gradients are summed up at the last."""
    for x, y in batches:
        parts = list(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True))
        with reg.sample():
            for i, (x_part, y_part) in enumerate(parts):
                with model.no_sync() if i < len(parts) - 1 else nullcontext():
                    (F.cross_entropy(model(x_part), y_part) / len(parts)).backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *reg.parameters()], 1.0)
        opt.step()


def main() -> None:
    """Train on scikit-learn's digits; rank 0 prints and saves."""
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32).to(device), torch.tensor(labels).to(device))
    loader = DataLoader(data, batch_size=64, sampler=DistributedSampler(data), drop_last=True)  # 64 a rank
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(device)  # for real use: pretrained
    model = DistributedDataParallel(net)
    reg = deelbo.LearnedL2(net, num_examples=len(data), head="2")  # N counts the examples of all ranks
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1, momentum=0.9, nesterov=True)
    reg.check(opt)
    train(model, loader, reg, opt, micro_batches=2)
    if dist.get_rank() == 0:
        print(f"lambda {reg.lambda_:.3g}, tau {reg.tau:.3g}, sigma {reg.sigma:.3g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
