"""What the 2024 paper prints: tables 2 and 3. CIFAR-10, ResNet-50, one A100 40GB PCIe."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from bench.config.benchmark import Benchmark
from bench.config.sections import Training

__all__ = ["TABLE2", "TABLE3", "paper_de_elbo", "unlike_paper"]


_HERE = {"dataset": "CIFAR-10", "backbone": "resnet50"}
TABLE2 = pd.DataFrame(
    [
        _HERE
        | {"prior": prior, "method": method, "n": 50000, "split_seed": 1001}
        | {"published_run_seconds": run, "published_runs": runs, "published_total_seconds": total}
        for prior, method, run, runs, total in (
            ("l2-sp", "map-gs", 39 * 60 + 11, 24, 16 * 3600 + 15 * 60),
            ("l2-sp", "de-elbo", 39 * 60, 4, 2 * 3600 + 36 * 60),
            ("ptyl", "map-gs", 37 * 60 + 15, 240, 149 * 3600 + 36 * 60),
            ("ptyl", "de-elbo", 40 * 60, 4, 2 * 3600 + 39 * 60),
        )
    ]
)
"""Table 2 of the 2024 paper: seconds of training steps on one A100, totals printed to the minute."""
TABLE3 = pd.DataFrame(
    [
        _HERE
        | {"prior": prior, "method": method, "n": n}
        | dict(zip(("published_mean", "published_min", "published_max"), numbers, strict=True))
        for prior, method, row in (
            ("l2-zero", "map-gs", ((67.7, 66.0, 68.6), (87.8, 87.5, 88.4), (95.0, 94.4, 95.5), (97.2, 97.1, 97.2))),
            ("l2-zero", "de-elbo", ((60.9, 58.9, 63.1), (87.2, 87.0, 87.4), (91.2, 90.7, 92.0), (93.2, 93.0, 93.3))),
            ("l2-sp", "map-gs", ((68.1, 66.7, 68.9), (87.3, 87.2, 87.3), (95.3, 95.1, 95.7), (97.1, 97.0, 97.1))),
            ("l2-sp", "de-elbo", ((70.6, 68.7, 72.7), (87.2, 86.8, 87.4), (95.0, 94.8, 95.2), (96.8, 96.7, 96.9))),
            ("ptyl", "map-gs", ((67.5, 65.7, 68.4), (87.9, 86.9, 89.2), (95.2, 95.0, 95.4), (97.3, 97.3, 97.3))),
            ("ptyl", "de-elbo", ((70.6, 68.7, 72.6), (87.2, 86.9, 87.6), (95.1, 94.9, 95.4), (96.9, 96.8, 96.9))),
        )
        for n, numbers in zip((100, 1000, 10000, 50000), row, strict=True)
    ]
)
"""Table 3 of the 2024 paper: class-balanced test accuracy in percent over seeds 1001, 2001, 3001."""


def unlike_paper(benchmark: Benchmark) -> str | None:
    """In what a benchmark on the paper's dataset and backbone was trained otherwise than published; None: in nothing.

    Precision and memory layout are said too: the paper's runs were in float32.
    """
    if _HERE["dataset"] not in benchmark.datasets or _HERE["backbone"] not in benchmark.backbones:
        return None
    ours, published = benchmark.training.model_dump(), Training().model_dump()
    changed = [
        f"{name} = {value} (paper: {published[name]})" for name, value in ours.items() if value != published[name]
    ]
    changed = [words for words in changed if not words.startswith(("series_points", "channels_last", "compile"))]
    changed = [words.replace("(paper: None)", "(paper: 224)") for words in changed]
    if not benchmark.verify_data:
        changed.append("images that were not verified")
    if not changed:
        return None
    return f"Published numbers beside {benchmark.name} are of other settings. Here: {', '.join(changed)}."


def paper_de_elbo(results: pd.DataFrame, published: Collection[str]) -> pd.DataFrame:
    """What the paper prints of the DE ELBo, for its own cells that have a grid and no DE ELBo run.

    It stands in there and nowhere else: beside runs of other hardware, its seconds would mean nothing.

    Args:
        results: any table with columns source, dataset, backbone, prior, method, n.
        published: the sources that are the paper's own.

    Returns:
        source, and the columns of `TABLE3` and `TABLE2`; no time where none is printed.
    """
    keys = ["source", "dataset", "backbone", "prior", "n"]
    own = results[results["source"].isin(list(published))]
    done = pd.MultiIndex.from_frame(own.loc[own["method"] == "de-elbo", keys])
    grids = own.loc[own["method"] == "map-gs", keys].drop_duplicates()
    grids = grids[~pd.MultiIndex.from_frame(grids).isin(done)]
    printed = TABLE3.merge(TABLE2, on=[*keys[1:], "method"], how="left")
    return grids.merge(printed[printed["method"] == "de-elbo"], on=keys[1:])
