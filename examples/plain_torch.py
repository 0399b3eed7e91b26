"""A plain torch loop with gradient accumulation, mixed precision, clipping, and a checkpoint to resume from."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import deelbo


def train_step(model, reg, opt, scaler, x, y, micro_batches=1):
    """Make one optimizer step on a batch: all forward and backward passes of the step share one block, one draw."""
    with reg.sample():
        for x_part, y_part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            with torch.autocast(x.device.type, enabled=scaler.is_enabled()):
                loss = F.cross_entropy(model(x_part), y_part, reduction="sum") / len(x)  # adds up to the batch's mean
            scaler.scale(loss).backward()
    scaler.unscale_(opt)
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *reg.parameters()], 1.0)
    scaler.step(opt)
    scaler.update()


def main() -> None:
    """Train on scikit-learn's digits, save, and resume in new objects."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32, device=device), torch.tensor(labels, device=device)
    file = Path(tempfile.mkdtemp()) / "checkpoint.pt"
    for run in range(2):
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).to(device)
        reg = deelbo.LearnedL2(model, num_examples=len(x), head="2")
        opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1, momentum=0.9, nesterov=True)
        reg.check(opt)
        scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
        saved = {"model": model, "reg": reg, "opt": opt, "scaler": scaler}
        if run == 1:
            for name, state in torch.load(file, weights_only=True).items():
                saved[name].load_state_dict(state)
        for x_batch, y_batch in zip(x.split(128), y.split(128), strict=True):
            train_step(model, reg, opt, scaler, x_batch, y_batch, micro_batches=2)
        torch.save({name: part.state_dict() for name, part in saved.items()}, file)
        print(f"lambda {reg.lambda_:.3g}, tau {reg.tau:.3g}, sigma {reg.sigma:.3g}, weight decay {reg.weight_decay()}")


if __name__ == "__main__":
    main()
