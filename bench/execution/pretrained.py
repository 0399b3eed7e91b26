"""Load the pretrained weights of backbones, and their posterior for PTYL."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.config.benchmark import Benchmark
from bench.config.sections import SWAGFiles
from bench.exceptions import ConfigError
from bench.methods.base import Method
from bench.utils.text import short
from deelbo.data import crop_size
from deelbo.pretrained.embedded import Pretrained
from deelbo.pretrained.weights import download_weights, imagenet_file, load_backbone


def download_missing_weights(benchmark: Benchmark, say: Callable[[str], object]) -> None:
    """Download torchvision's weights that the benchmark starts from and this machine lacks."""
    for name, settings in benchmark.backbones.items():
        model, version = settings.model or name, settings.imagenet_version(name)
        if version is None:
            continue
        try:
            imagenet_file(model, version)
        except ValueError as missing:
            say(f"{name}: {missing}")
            say(f"{name}: downloaded to {short(download_weights(model, version))}")


def load_pretrained_backbones(
    benchmark: Benchmark, methods: Sequence[Method], say: Callable[[str], object] | None = None
) -> dict[str, Pretrained]:
    """Return the pretrained weights by backbone, of those that ``methods`` use; PTYL's files only if one needs them."""
    pretrained: dict[str, Pretrained] = {}
    given = benchmark.training.image_size
    size = min(crop_size(dataset, given, benchmark.source(dataset)) for dataset in benchmark.datasets) or None
    for name, settings in benchmark.backbones.items():
        priors = {method.cell.prior for method in methods if method.cell.backbone == name}
        if not priors:
            continue
        posterior = settings.ptyl if "ptyl" in priors else None
        swag = {key: Path(path) for key, path in posterior} if isinstance(posterior, SWAGFiles) else posterior
        try:
            network = benchmark.backbone_source(name)
            with warnings.catch_warnings(record=True) as caught:
                pretrained[name] = load_backbone(
                    network.model, settings.weights, swag, say, size, settings.head, network.max_length
                )
        except ValueError as error:
            raise ConfigError(f"backbones.{name}: {error}") from error
        if say is not None:
            for warning in caught:
                say(f"{name}: {warning.message}")
    return pretrained
