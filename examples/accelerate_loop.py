"""A loop with accelerate: one forward and backward pass a call, gradients accumulated over several."""

import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deelbo


def train(accelerator, model, loader, reg, opt, epochs=1):
    """Train for some epochs; model, loader and optimizer come from ``accelerator.prepare``."""
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                with reg.sample(accumulate=True):
                    accelerator.backward(F.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_([*model.parameters(), *reg.parameters()], 1.0)
                opt.step()
                opt.zero_grad()


def main() -> None:
    """Train on scikit-learn's digits, save the state and load it again."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))  # for real use: pretrained
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model, loader = accelerator.prepare(net, DataLoader(data, batch_size=64, shuffle=True))
    reg = deelbo.LearnedL2(net, num_examples=len(data), head="2")  # now that the weights are on their device
    opt = accelerator.prepare(torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1, momentum=0.9))
    reg.check(opt)
    accelerator.register_for_checkpointing(reg)
    train(accelerator, model, loader, reg, opt, epochs=2)
    folder = accelerator.save_state(tempfile.mkdtemp())
    accelerator.load_state(folder)
    accelerator.print(f"lambda {reg.lambda_:.3g}, tau {reg.tau:.3g}, sigma {reg.sigma:.3g}")


if __name__ == "__main__":
    main()
