"""The baseline of `speed`: MAP and the DE ELBo in plain PyTorch, written as the formulas read.

A DataLoader whose workers transform one image at a time on the CPU; float32 with torch's default flags (on a GPU TF32
in convolutions, not in matrix products); noise drawn layer by layer and applied with `torch.func.functional_call`; the
whole objective differentiated by autograd; L2-SP's prior. The loss is also the reference for the fast path.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from deelbo.data import Images, ImageTransform, Split


class SingleImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split) -> None:
        from torchvision import transforms

        if not isinstance(split.train, Images) or not isinstance(split.transform, ImageTransform):
            raise TypeError("the baseline needs images")
        self.images, view, normalization = split.train, split.transform.geometry, split.transform.fitted
        steps: list[Callable[[Tensor], Tensor]] = [
            transforms.Normalize(normalization.mean.tolist(), normalization.std.tolist()),
            transforms.Resize((view.side, view.side)),
            transforms.RandomCrop(view.crop, padding=view.pad or None),
        ]
        self.transform = transforms.Compose([*steps, *([transforms.RandomHorizontalFlip()] if view.flip else [])])
        self.to_tensor, self.to_image = transforms.ToTensor(), transforms.ToPILImage()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.to_image(self.images.pixels[index])
        return self.transform(self.to_tensor(picture)), int(self.images.labels[index])


def prior_means(model: nn.Module, head: str) -> dict[str, Tensor]:
    """Return L2-SP's prior means by name: zeros for the head, the current weights for the backbone."""
    return {
        name: torch.zeros_like(p) if name.startswith(f"{head}.") else p.detach().clone()
        for name, p in model.named_parameters()
    }


def reference_kl(weights: Mapping[str, Tensor], means: Mapping[str, Tensor], sigma: Tensor) -> Tensor:
    """Return KL(N(w, sigma^2 I) || N(mu, s* I)) of the named weights at the closed-form scale s*; differentiable."""
    size = sum(weight.numel() for weight in weights.values())
    distance = torch.stack([(weights[name] - means[name]).square().sum() for name in weights]).sum()
    scale = sigma.square() + distance / size
    return 0.5 * size * (scale.log() - 2 * sigma.log())


def reference_terms(
    model: nn.Module,
    head: str,
    means: Mapping[str, Tensor],
    rho: Tensor,
    noise: Callable[[str, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    num_examples: int,
) -> tuple[Tensor, Tensor]:
    """Return the two terms of the DE ELBo of one batch: mean NLL at a sample of the weights, and KL / D (kappa = D/N).

    sigma is softplus(rho); ``noise`` returns the standard normal noise of the weight of that name.
    """
    weights = dict(model.named_parameters())
    sigma = F.softplus(rho)
    sample = {name: weight + sigma * noise(name, weight) for name, weight in weights.items()}
    nll = F.cross_entropy(functional_call(model, sample, (batch[0],)), batch[1])
    groups = [[n for n in weights if n.startswith(f"{head}.") is of_head] for of_head in (False, True)]
    kl = torch.stack([reference_kl({n: weights[n] for n in names}, means, sigma) for names in groups]).sum()
    kappa = sum(weight.numel() for weight in weights.values()) / num_examples
    return nll, kl / (kappa * num_examples)


class BaselineRun:
    """A training run; ``method`` is "map" or "de-elbo"."""

    def __init__(self, model: nn.Module, head: str, split: Split, method: str, batch: int, workers: int) -> None:
        self.model, self.head, self.method = model.train(), head, method
        self.device = next(model.parameters()).device
        self.num_examples = len(split.train)
        self.means = prior_means(model, head)
        self.rho = nn.Parameter(torch.tensor(-9.2, device=self.device))
        parameters = [*model.parameters(), *([self.rho] if method == "de-elbo" else [])]
        self.optimizer = torch.optim.SGD(parameters, lr=0.001, momentum=0.9, nesterov=True)
        self.loader = DataLoader(
            SingleImages(split),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
        )
        self.batches: Iterator[list[Tensor]] = itertools.chain.from_iterable(itertools.repeat(self.loader))

    def close(self) -> None:
        del self.batches, self.loader

    def step(self) -> None:
        x, y = (tensor.to(self.device, non_blocking=True) for tensor in next(self.batches))
        self.optimizer.zero_grad()
        if self.method == "map":
            loss = F.cross_entropy(self.model(x), y)
            for name, weight in self.model.named_parameters():
                loss = loss + 0.5e-3 * (weight - self.means[name]).square().sum()
        else:
            nll, kl = reference_terms(
                self.model, self.head, self.means, self.rho, lambda _, w: torch.randn_like(w), (x, y), self.num_examples
            )
            loss = nll + kl
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
