"""torch.compile: the compiled module computes, `LearnedL2` shifts the weights that it shares with the original."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import deelbo


def train(model, batches, reg, opt, micro_batches=1):
    """Train on the batches; each is split into so many micro-batches of one size, or the model is compiled again."""
    for x, y in batches:
        with reg.sample():
            for x_part, y_part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
                (F.cross_entropy(model(x_part), y_part) / micro_batches).backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *reg.parameters()], 1.0)
        opt.step()


if __name__ == "__main__":
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32)[:1792], torch.tensor(labels)[:1792]
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))  # for real use: pretrained
    compiled = torch.compile(model)
    reg = deelbo.LearnedL2(model, num_examples=len(x), head="2")
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1, momentum=0.9, nesterov=True)
    reg.check(opt)
    train(compiled, zip(x.split(128), y.split(128), strict=True), reg, opt, micro_batches=2)
    print(f"lambda {reg.lambda_:.3g}, tau {reg.tau:.3g}, sigma {reg.sigma:.3g}")
