"""A table by the same protocol as images: rows are the inputs, and a `Transform` standardizes their columns."""

from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_wine

import deelbo
from deelbo.data import Examples, Task, Transform


@dataclass(frozen=True)
class Standardize(Transform):
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None

    def fit(self, examples, rows=None):
        chosen = examples.inputs if rows is None else examples.inputs[rows]
        return replace(self, mean=chosen.mean(0), std=chosen.std(0))

    def to(self, device):
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def evaluation(self, inputs):  # which `training` calls, too, as nothing is random here
        return (inputs - self.mean) / self.std


if __name__ == "__main__":
    table, labels = (torch.from_numpy(part) for part in load_wine(return_X_y=True))
    wine, order = Examples(table.float(), labels, num_classes=3), torch.randperm(178, generator=torch.manual_seed(0))
    task = Task("wine", wine.take(order[:120]), wine.take(order[120:]), Standardize(), proportional=True)
    for rate in (0.1, 0.01):  # choose the one with the lowest objective
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(13, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))
        objective = deelbo.DataEmphasizedELBO(deelbo.make_groups(model, "2", "l2-zero"), num_examples=60)
        schedule = deelbo.Schedule(learning_rate=rate, steps=300, batch_size=30)
        result = deelbo.fit(model, task.split(60, seed=0, validation=False), objective, schedule, seed=0)
        lambda_, tau, sigma = (result.state[name] for name in ("scale_backbone", "scale_head", "sigma"))
        learned = f"lambda {lambda_:.3g}, tau {tau:.3g}, sigma {sigma:.3g}"
        print(f"rate {rate}: {learned}, objective {result.metrics['objective']:.3f}, {result.metrics['test_acc']:.1%}")
