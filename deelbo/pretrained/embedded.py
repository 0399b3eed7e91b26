"""Pretrained weights with their SWAG posterior, and the pretraining of the embedded backbone digits-resnet."""

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from deelbo.data.images import Geometry, Images, Normalization
from deelbo.data.registry import DIGIT_SIZE, cache_folder
from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.swag import SWAG

VERSION = 2
"""Version of the pretraining, part of the cached file's name: to be raised if the same recipe gives other numbers."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network. State dicts are of the whole network, vectors are over the backbone's weights in order."""

    weights: dict[str, Tensor]  # the result of ordinary training, from which L2-zero and L2-SP start; {}: random ones
    swag_weights: dict[str, Tensor] | None = None  # SWAG's mean with BatchNorm's statistics, from which PTYL starts
    variance: Tensor | None = None  # SWAG's s; (D_w,)
    factor: Tensor | None = None  # SWAG's Q; (D_w, K)
    architecture: str = ""  # description of a network that the user has chosen; "" for those of this package

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all tensors, and of the architecture."""
        vectors = [vector for vector in (self.variance, self.factor) if vector is not None]
        return _hash([*self.weights.values(), *(self.swag_weights or {}).values(), *vectors], self.architecture)

    @cached_property
    def _weights_fingerprint(self) -> str:
        return _hash(self.weights.values(), self.architecture)

    def fingerprint_for(self, prior: str) -> str:
        """Return a hash of everything that a run with that prior starts from."""
        return self.fingerprint if prior == "ptyl" else self._weights_fingerprint


def _hash(tensors: Iterable[Tensor], architecture: str) -> str:
    digest = hashlib.sha256(architecture.encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """Settings of the pretraining on the source task. Their hash is part of the cached file's name."""

    backbone: str = "digits-resnet"
    epochs: int = 15
    swag_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.1
    swag_learning_rate: float = 0.02
    weight_decay: float = 5e-4
    max_shift: int = 1
    rank: int = 5
    seed: int = 0


def cache_path(recipe: Recipe) -> Path:
    """Return the recipe's file, named after all that determines its content."""
    model, _ = build_backbone(recipe.backbone, 10)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    content = json.dumps([VERSION, asdict(recipe), shapes, torch.__version__], sort_keys=True)
    return cache_folder() / f"{recipe.backbone}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.pt"


def load_pretrained(recipe: Recipe | None = None, say: Callable[[str], object] | None = None) -> Pretrained:
    """Return the embedded backbone pretrained by ``recipe``, from the user's cache or trained now and cached.

    ``say`` is called with one line if it has to be trained, and with another if the cache cannot be written. A damaged
    cached file raises ValueError.
    """
    recipe = recipe or Recipe()
    path = cache_path(recipe)
    if os.access(path, os.R_OK):  # False also in a folder that may not be searched
        try:
            return Pretrained(**torch.load(path, weights_only=True))
        except Exception as error:
            remedy = "delete it, and it will be made again"
            raise ValueError(f"{path} cannot be read ({type(error).__name__}): {remedy}") from error
    if say is not None:
        say(f"pretraining {recipe.backbone} on its source task, once for this user")
    pretrained = pretrain(recipe)
    try:
        _write_cache(path, pretrained)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a disk that is full
        if say is not None:
            reason = f"{path.parent}: {getattr(error, 'strerror', None) or type(error).__name__}"
            say(f"it cannot be kept for later ({reason}): set $DEELBO_CACHE to a folder that can be written")
    return pretrained


def _write_cache(path: Path, pretrained: Pretrained) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".part") as folder:
        temporary = Path(folder) / path.name
        torch.save({field.name: getattr(pretrained, field.name) for field in fields(pretrained)}, temporary)
        temporary.replace(path)


def pretrain(recipe: Recipe) -> Pretrained:
    """Train the recipe's backbone on the source digits, then run SWAG; one thread and one seed give the same bits."""
    from deelbo.data.digits import load_uci  # scikit-learn takes seconds to import

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _pretrain(recipe, load_uci(DIGIT_SIZE))
    finally:
        torch.set_num_threads(threads)


def _pretrain(recipe: Recipe, source: Images) -> Pretrained:
    model, head = build_backbone(recipe.backbone, source.num_classes, seed=recipe.seed)
    normalize = Normalization.of(source)
    geometry = Geometry(side=DIGIT_SIZE, crop=DIGIT_SIZE, pad=recipe.max_shift)
    random = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps_per_epoch = len(source) // recipe.batch_size
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs * steps_per_epoch)

    def train_epoch() -> None:
        model.train()
        for indices in torch.randperm(len(source), generator=random).split(recipe.batch_size)[:steps_per_epoch]:
            x = normalize(geometry.training(source.pixels[indices], geometry.draw(len(indices), random)))
            optimizer.zero_grad()
            F.cross_entropy(model(x), source.labels[indices]).backward()
            optimizer.step()

    for _ in range(recipe.epochs):
        train_epoch()
        for _ in range(steps_per_epoch):
            cosine.step()
    weights = copy.deepcopy(model.state_dict())
    swag = SWAG(split_at_head(model, head)[0], recipe.rank)
    for group in optimizer.param_groups:
        group["lr"] = recipe.swag_learning_rate
    for _ in range(recipe.swag_epochs):
        train_epoch()
        swag.collect()
    swag.load_mean()
    update_bn(normalize(source.pixels).split(256), model)
    return Pretrained(weights, copy.deepcopy(model.state_dict()), swag.variance, swag.factor)
