"""The form of timm's train.py: its optimizer, its scaler, its clipping, its gradient accumulation."""

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler, dispatch_clip_grad

import deelbo


def train_one_epoch(model, loader, reg, optimizer, loss_scaler=None, clip_grad=1.0, accum_steps=1):
    """Train for one epoch; ``loss_scaler`` is timm's, for float16."""
    parameters = [*model.parameters(), *reg.parameters()]
    scaler = loss_scaler and loss_scaler._scaler
    remainder = len(loader) % accum_steps  # the last step may have fewer micro-batches
    for batch_idx, (x, y) in enumerate(loader):
        with reg.sample(accumulate=True):
            with torch.autocast(x.device.type, enabled=scaler is not None):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            loss = loss / (remainder if batch_idx >= len(loader) - remainder else accum_steps)
            if loss_scaler:
                loss_scaler(loss, optimizer, need_update=False)  # the backward pass alone: the step follows the block
            else:
                loss.backward()
        if (batch_idx + 1) % accum_steps and batch_idx + 1 < len(loader):
            continue
        if loss_scaler:
            scaler.unscale_(optimizer)
        dispatch_clip_grad(parameters, clip_grad)
        if loss_scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model("test_resnet", num_classes=10).to(device)  # for real use: pretrained=True
    images, labels = torch.randn(72, 3, 64, 64, device=device), torch.randint(0, 10, (72,), device=device)
    reg = deelbo.LearnedL2(model, num_examples=len(images), head="fc")
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=0.0)
    optimizer.add_param_group({"params": reg.parameters(), "weight_decay": 0.0})  # before a scheduler is made
    reg.check(optimizer)
    loader = list(zip(images.split(8), labels.split(8), strict=True))
    train_one_epoch(model, loader, reg, optimizer, NativeScaler(device) if device == "cuda" else None, accum_steps=2)
    print(f"lambda {reg.lambda_:.3g}, tau {reg.tau:.3g}, sigma {reg.sigma:.3g}")
