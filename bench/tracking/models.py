"""Log kept models to MLflow, as graphs that `mlflow.pytorch.load_model` loads without unpickling anything."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.config.benchmark import Benchmark
from bench.results.configurations import selected_trials
from bench.storage.models import has_model, read_model
from bench.storage.records import RecordStore
from bench.tracking.conversion import record_mark
from bench.tracking.runs import MLflowRuns
from bench.utils.text import single_line
from deelbo.saved_model import SavedModel, load_model


class RawInputNetwork(nn.Module):
    """The logits of a saved model, given rows as its dataset has them: for images, uint8 pixels (n, C, H, W)."""

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        self.network = model.network
        self._transform, self._numerics, self._device = model.transform, model.numerics, model.device

    def forward(self, inputs: Tensor) -> Tensor:
        with self._numerics.autocast(self._device):
            logits: Tensor = self.network(self._numerics.to_memory_format(self._transform.evaluation(inputs)))
        return logits.float()


def log_models(
    store: RecordStore, benchmark: Benchmark, uri: str, allow_import: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Log the kept model of each choice, once; the trials' runs must be in MLflow.

    Returns:
        the number of models that are in MLflow, and a line for each that cannot be there.
    """
    records = {record.key: record for record in store.records([])}
    keys = [key for key in selected_trials(benchmark, list(records.values())) if has_model(store, key)]
    if not keys:
        return 0, []
    runs, problems = MLflowRuns(uri, benchmark, store), []
    runs.load()
    for key in keys:
        mark = record_mark(records[key])
        try:
            if not runs.has_model(key, mark):
                with tempfile.TemporaryDirectory(prefix="deelbo-model-") as folder:
                    runs.log_model(key, mark, _export(store, key, Path(folder), allow_import))
        except ValueError as error:
            problems.append(f"{records[key].spec.describe()}: {single_line(error)}")
    return len(keys) - len(problems), problems


def _export(store: RecordStore, key: str, folder: Path, allow_import: Sequence[str]) -> Path:
    """Write a trial's model as MLflow has them, and return its folder; ValueError if torch cannot export it."""
    for name, content in read_model(store, key).items():
        (folder / name).write_bytes(content)
    model = load_model(folder, allow_import=allow_import)
    try:
        return write_mlflow_model(model, folder / "mlflow")
    except Exception as error:  # of torch.export, in as many ways as networks can be written
        raise ValueError(f"its network cannot be exported as a graph ({single_line(error, 200)})") from error


def write_mlflow_model(model: SavedModel, folder: Path) -> Path:
    """Write a model in the form of MLflow's flavor pytorch, and return its folder.

    It is a graph in torch's format pt2: MLflow's other one is a pickle, which runs code when it is loaded.
    """
    import mlflow.pytorch
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    example = torch.zeros((2, *model.input_shape), dtype=getattr(torch, model.input_dtype)).numpy()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            RawInputNetwork(model).eval(),
            str(folder),
            serialization_format="pt2",
            signature=ModelSignature(Schema([TensorSpec(example.dtype, (-1, *model.input_shape))])),
            input_example=example,
            pip_requirements=[f"torch=={torch.__version__}"],  # all that the graph needs; else MLflow would guess
            metadata={"classes": list(model.classes)},
        )
    return folder
