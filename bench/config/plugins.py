"""The plug-ins that a benchmark, or one of its trials, uses."""

from bench.config.benchmark import Benchmark
from bench.methods import REGISTRY
from bench.trials.spec import TrialSpec
from deelbo.data import DATASETS
from deelbo.plugins import Plugin


def used_plugins(benchmark: Benchmark, spec: TrialSpec | None = None) -> tuple[Plugin, ...]:
    """Return the plug-ins of a benchmark's datasets and methods, or of those of one trial; none is imported."""
    datasets = benchmark.datasets if spec is None else (spec.dataset,)
    methods = benchmark.methods if spec is None else (spec.method,)
    found = [DATASETS.plugin(name) for name in datasets if benchmark.source(name) is None]
    found += [REGISTRY.plugin(benchmark.methods[name].method) for name in methods]
    return tuple(dict.fromkeys(plugin for plugin in found if plugin is not None))


def plugin_modules(benchmark: Benchmark) -> tuple[tuple[str, str], ...]:
    """Return the module and distribution of each plug-in of a benchmark, as `bench.utils.code.find_code` takes them."""
    return tuple((plugin.module, plugin.distribution) for plugin in used_plugins(benchmark))
