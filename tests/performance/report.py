"""Measure a report, as JSON: `make measure-report`. Not a test: it takes minutes, most of them in the slow form.

- 6,912 grid trials (CIFAR-10, three priors, four sizes, three seeds, all of them trained again) and 144 DE ELBo runs,
  from their record files to the finished page: seconds and peak memory of the whole command;
- the published figure 2, where the authors' files are given: seconds after reading them;
- the exact curve beside 100 rounds of 500 subsamples of each size 1 to 24, each drawn by DataFrame.sample.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.config.benchmark import make_methods
from bench.config.loading import parse_benchmark
from bench.report.figures.style import save_figure
from bench.report.figures.subsampling import draw_subsampling
from bench.results.configurations import Configurations
from bench.results.curves import compute_curves, exact_curve
from bench.results.paper import find_paper_de_elbo
from bench.results.sources import load_published
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

CONTENT = {
    "name": "full-size",
    "dataset": "CIFAR-10",
    "backbone": "resnet50",
    "priors": ["l2-zero", "l2-sp", "ptyl"],
    "n": [100, 1000, 10000, 50000],
    "seeds": [1001, 2001, 3001],
    "methods": {"map-gs": {"retrain": "all"}, "de-elbo": {}},
    "training": {"steps": 6000, "batch_size": 128},
}


def synthetic(folder: Path, content: dict[str, Any]) -> int:
    """A storage whose trials nobody ran, with all that real records hold; how many there are."""
    benchmark = parse_benchmark(content, "synthetic")
    RecordStore(str(folder)).write_benchmark(benchmark.content())
    (folder / "records").mkdir()
    random = np.random.default_rng(0)
    queue, count = TrialQueue(make_methods(benchmark), (), 0), 0
    while (spec := queue.ask()) is not None:
        record = invented(spec, random)
        (folder / "records" / f"{record.key}.json").write_text(record.to_json())
        queue.tell(record)
        count += 1
    return count


def invented(spec: TrialSpec, random: np.random.Generator) -> TrialRecord:
    """A record of plausible numbers."""
    skill = 0.9 - 0.1 * abs(np.log10(spec.learning_rate) + 2) + 0.02 * random.standard_normal()
    metrics = {
        "train_nll": 0.1,
        "val_nll": 2 - 2 * skill,
        "val_acc": skill,
        "test_nll": 2 - 2 * skill,
        "test_acc": skill,
    }
    state = {"regularizer": 0.1, "weight_decay_backbone": 0.01, "weight_decay_head": 0.01, "sigma": 0.01}
    if spec.stage == "run":
        metrics |= {"objective": 2 - 2 * skill, "nll_under_q": 1 - skill}
        state |= {"kappa": 23528522 / spec.n, "scale_backbone": 1e-3, "scale_head": 0.1}
        for group, size in (("backbone", 23508032), ("head", 20490)):
            state |= {f"dim_{group}": size, f"squared_distance_{group}": 10.0, f"trace_precision_{group}": size}
            state[f"log_det_{group}"] = 0.0
    seconds = {"setup": 5.0, "warmup": 2.0, "train": 2000 + 100 * random.random(), "evaluate": 3.0, "select": 9.0}
    return TrialRecord(
        spec,
        "completed",
        metrics,
        state,
        seconds | {"total": 2100.0},
        0.0,
        2100.0,
        hardware={"gpu": "A100", "threads": 4},
    )


def measure_report() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        trials = synthetic(Path(name), CONTENT)
        command = [sys.executable, "-m", "bench", "report", name, "--out", f"{name}/report"]
        since = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - since
        page = Path(name, "report", "report.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    return {"trials": trials, "seconds": seconds, "peak_gib": peak, "page_mib": page / 1024**2}


def measure_published(folder: Path, rounds: int = 7) -> dict[str, Any]:
    """Seconds of the 18 whole curves and three ends, after reading: the first time in a process, and later."""
    pairs = [
        (file, file.with_name(f"re{file.name.replace('tuned', 'trained')}")) for file in folder.glob("tuned_*.csv")
    ]
    frame = load_published(pairs).frame
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            marks = [time.perf_counter()]
            drawn = compute_curves(frame)
            marks.append(time.perf_counter())
            figure = draw_subsampling(drawn, "train", find_paper_de_elbo(drawn, [""]))
            marks.append(time.perf_counter())
            save_figure(figure, Path(out), "figure2")
            marks.append(time.perf_counter())
            times.append(np.diff(marks))
    middle = np.median(times[1:], axis=0)
    whole = drawn.groupby(["dataset", "prior", "n", "split_seed"])["k"].min() == 1
    parts = dict(zip(("curves", "figure", "png_and_pdf"), middle.tolist(), strict=True))
    return {"whole_curves": int(whole.sum()), "first_seconds": float(times[0].sum()), "median_seconds": parts}


def measure_exact(rounds: int, size: int = 24, subsamples: int = 500) -> dict[str, Any]:
    """The exact curve beside the same by sampling a DataFrame, in one process."""
    random = np.random.default_rng(0)
    tuning, retraining, accuracy = random.uniform(2000, 2400, (3, size))
    rows = np.arange(size)
    found = Configurations(tuning, retraining, accuracy / 2400, rows, rows)
    table = pd.DataFrame({"nll": rows, "tuning": tuning, "retraining": retraining, "accuracy": accuracy / 2400})
    since = time.perf_counter()
    for _ in range(rounds):
        for k in range(1, size + 1):
            results = []
            for _ in range(subsamples):
                drawn = table.sample(k)
                best = drawn.loc[drawn["nll"].idxmin()]
                results.append((drawn["tuning"].sum() + best["retraining"], best["accuracy"]))
            np.mean(results, axis=0)
    sampled = time.perf_counter() - since
    repeats = 200
    since = time.perf_counter()
    for _ in range(repeats):
        exact_curve(found)
    exact = (time.perf_counter() - since) / repeats
    whole = sampled * 100 / rounds
    return {
        "rounds_measured": rounds,
        "sampled_seconds": sampled,
        "exact_seconds": exact,
        "ratio_to_100_rounds": whole / exact,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, help="folder of tuned_*.csv and retrained_*.csv")
    parser.add_argument(
        "--rounds", type=int, default=100, help="of 500 subsamples of each size (100: about 15 minutes)"
    )
    options = parser.parse_args()
    result = {"python": platform.python_version(), "pandas": pd.__version__, "report": measure_report()}
    if options.published is not None:
        result["published_figure2"] = measure_published(options.published)
    result["exact_curve"] = measure_exact(options.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
