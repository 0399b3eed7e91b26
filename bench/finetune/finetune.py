"""The steps of `finetune` before and after its trials: initial weights; the model, its measurements and its card."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark
from bench.config.validation import check, tokenized_sources
from bench.exceptions import ConfigError
from bench.execution.pretrained import download_missing_weights
from bench.finetune.card import CARD, write_card
from bench.finetune.outcome import Finetuned, choose_trial, summarize
from bench.models.export import export
from bench.scheduling.queue import split_finished
from bench.storage.records import RecordStore
from deelbo.data import find_task, load_task
from deelbo.saved_model import SavedModel, load_model
from deelbo.training.evaluation import calibration_error


def prepare_weights(
    configuration: Mapping[str, Any],
    overrides: Sequence[str],
    allow_import: Sequence[str],
    say: Callable[[str], object],
) -> Benchmark:
    """Check the configuration, and download initial weights that are missing here; return the benchmark."""
    benchmark = check(load_benchmark(configuration, overrides), allow_import=allow_import)
    methods = make_methods(benchmark)
    if len(methods) != 1 or not methods[0].bayesian or benchmark.keep == "none":
        raise ConfigError(
            "--set: finetune trains one model by a method that learns the strengths, and keeps it: use `run` instead"
        )
    download_missing_weights(benchmark, say)
    return benchmark


def deliver(store: RecordStore, benchmark: Benchmark, out: Path, allow_import: Sequence[str]) -> Finetuned:
    """Copy the model of a finished storage to a folder, measure its calibration, and write its card, all or nothing.

    Raises:
        RecordError: there is no model.
    """
    records = split_finished(make_methods(benchmark), list(store.records())).records
    record = choose_trial(records)
    out = out.absolute()
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    export(store, record, partial)
    model = load_model(partial, allow_import=allow_import)
    made = _measure(summarize(benchmark, records, model.classes), model, benchmark)
    (partial / CARD).write_text(write_card(benchmark, made), encoding="utf-8")
    partial.replace(out)
    return made


def _measure(made: Finetuned, model: SavedModel, benchmark: Benchmark) -> Finetuned:
    """Add the number of test examples and the calibration error."""
    (name,) = benchmark.datasets
    (source,), size = tokenized_sources(benchmark, name), benchmark.training.image_size
    test_size = find_task(name, source, benchmark.data, size).test_size
    if not test_size:
        return made
    test = load_task(name, benchmark.data, size, benchmark.verify_data, source).test
    device = "cuda" if torch.cuda.is_available() else "cpu"
    calibration = calibration_error(model.to(device).predict(test.inputs), test.labels)
    return replace(made, test_size=test_size, calibration=calibration)
