"""The plug-ins, and the packages of `--allow-import`, that a benchmark or one of its trials uses."""

from bench.config.benchmark import Benchmark
from bench.methods import REGISTRY
from bench.trials.spec import TrialSpec
from deelbo.data import DATASETS
from deelbo.plugins import Plugin
from deelbo.pretrained.registry import NETWORKS, imported_package


def used_plugins(benchmark: Benchmark, spec: TrialSpec | None = None) -> tuple[Plugin, ...]:
    """Return the plug-ins of a benchmark's datasets, backbones and methods, or of one trial's; none is imported.

    A package from which the configuration imports a network counts as a plug-in of no distribution.
    """
    datasets = benchmark.datasets if spec is None else (spec.dataset,)
    backbones = benchmark.backbones if spec is None else (spec.backbone,)
    methods = benchmark.methods if spec is None else (spec.method,)
    found = [DATASETS.plugin(name) for name in datasets if benchmark.source(name) is None]
    for model in (benchmark.backbone_source(name).model for name in backbones):
        package = imported_package(model)
        found.append(NETWORKS.plugin(model) if package is None else Plugin("", "", package))
    found += [REGISTRY.plugin(benchmark.methods[name].method) for name in methods]
    return tuple(dict.fromkeys(plugin for plugin in found if plugin is not None))


def plugin_modules(benchmark: Benchmark) -> tuple[tuple[str, str], ...]:
    """Return the module and distribution of each plug-in of a benchmark, as `bench.utils.code.find_code` takes them."""
    return tuple((plugin.module, plugin.distribution) for plugin in used_plugins(benchmark))
