"""Tables 2 and 3 as printed in the 2024 paper: CIFAR-10, ResNet-50, one A100 40GB PCIe."""

from collections.abc import Collection

import pandas as pd

from bench.config.benchmark import Benchmark
from bench.config.sections import Training

_CELL = {"dataset": "CIFAR-10", "backbone": "resnet50"}
TABLE2 = pd.DataFrame(
    [
        _CELL
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
        _CELL
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


def describe_differences_to_paper(benchmark: Benchmark) -> str | None:
    """Describe settings that differ from the paper's, where dataset and backbone are its; None if none differ."""
    if _CELL["dataset"] not in benchmark.datasets or _CELL["backbone"] not in benchmark.backbones:
        return None
    published = Training().model_dump()
    irrelevant = ("series_points", "channels_last", "compile")
    changed = [
        f"{name} = {value} (paper: {224 if published[name] is None else published[name]})"
        for name, value in benchmark.training.model_dump().items()
        if value != published[name] and not name.startswith(irrelevant)
    ]
    changed += [] if benchmark.verify_data else ["images that were not verified"]
    if not changed:
        return None
    return f"{benchmark.name} differs from the published numbers beside it in: {', '.join(changed)}."


def find_paper_de_elbo(results: pd.DataFrame, published: Collection[str]) -> pd.DataFrame:
    """Find the printed DE ELBo results for cells of the paper's own files that have a grid and no DE ELBo run.

    Printed results replace runs nowhere else: seconds measured on other hardware cannot be compared with them.
    """
    keys = ["source", "dataset", "backbone", "prior", "n"]
    own = results[results["source"].isin(list(published))]
    ran = pd.MultiIndex.from_frame(own.loc[own["method"] == "de-elbo", keys])
    grids = own.loc[own["method"] == "map-gs", keys].drop_duplicates()
    grids = grids[~pd.MultiIndex.from_frame(grids).isin(ran)]
    printed = TABLE3.merge(TABLE2, on=[*keys[1:], "method"], how="left")
    return grids.merge(printed[printed["method"] == "de-elbo"], on=keys[1:])
