"""Load the pretrained weights of backbones, and their posterior for PTYL."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.config.benchmark import Benchmark
from bench.config.sections import SWAGFiles
from bench.exceptions import ConfigError
from bench.methods.base import Method
from deelbo.data import crop_size
from deelbo.pretrained.embedded import Pretrained
from deelbo.pretrained.weights import load_backbone


def load_pretrained_backbones(
    benchmark: Benchmark, methods: Sequence[Method], say: Callable[[str], object] | None = None
) -> dict[str, Pretrained]:
    """Return the pretrained weights by backbone, of those that ``methods`` use; PTYL's files only if one needs them."""
    pretrained: dict[str, Pretrained] = {}
    given = benchmark.training.image_size
    size = min(crop_size(dataset, given, benchmark.source(dataset)) for dataset in benchmark.datasets)
    for name, settings in benchmark.backbones.items():
        priors = {method.cell.prior for method in methods if method.cell.backbone == name}
        if not priors:
            continue
        posterior = settings.ptyl if "ptyl" in priors else None
        swag = {key: Path(path) for key, path in posterior} if isinstance(posterior, SWAGFiles) else posterior
        try:
            model = benchmark.backbone_source(name).model
            pretrained[name] = load_backbone(model, settings.weights, swag, say, size, settings.head)
        except ValueError as error:
            raise ConfigError(f"backbones.{name}: {error}") from error
    return pretrained
