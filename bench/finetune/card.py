"""The model card: a README.md that says what a model was made of, how good it is, and how it is used."""

from bench.config.benchmark import Benchmark
from bench.finetune.outcome import Finetuned
from bench.labels import PRIOR_NAMES
from bench.utils.text import format_duration, single_line
from deelbo.pretrained.registry import BackboneSource, imported_package

MAX_CLASSES_NAMED = 50
CARD = "README.md"
VERSIONS = ("deelbo", "python", "torch", "torchvision", "timm", "transformers")


def write_card(benchmark: Benchmark, made: Finetuned) -> str:
    """Return the card as Markdown; it names no path of this machine."""
    record = made.record
    spec, state, versions = record.spec, record.state, record.versions
    settings = benchmark.backbones[spec.backbone]
    weights = single_line(settings.weights or "the network's own", 200).rpartition("/")[2]
    network = single_line(settings.model or spec.backbone, 200).rpartition("/")[2]
    is_text = BackboneSource(settings.model or spec.backbone).text_model is not None
    inputs = "TEXTS.csv" if is_text else "PICTURES"
    batchnorm = "" if is_text else f", BatchNorm {'trained' if spec.batchnorm == 'train' else 'frozen'}"
    trained = batchnorm if spec.train == "all" else ", the head alone"
    size = "" if spec.image_size is None else f", images of {spec.image_size} x {spec.image_size} pixels"
    named = [_escape(name) for name in made.classes[:MAX_CLASSES_NAMED]]
    more = f"; and {len(made.classes) - MAX_CLASSES_NAMED} more" if len(made.classes) > MAX_CLASSES_NAMED else ""
    rows = {
        "data": f"{spec.dataset}: {spec.n:,} training and {made.test_size:,} test examples, "
        f"hash {versions.get('data', 'unknown')}",
        f"{len(made.classes)} classes": "; ".join(named) + more,
        "network": f"{network}, head `{settings.head}`" if settings.head else network,
        "initial weights": f"{weights}, hash {versions.get('pretrained', 'unknown')}",
        "training": f"{spec.steps:,} steps of {min(spec.batch_size, spec.n)} examples{size}{trained}, seed {spec.seed}",
        "prior": PRIOR_NAMES[spec.prior],
        "learned": f"{made.describe_scales(4)}, sigma {state['sigma']:.4g}",
        "weight decay": made.describe_weight_decay(4),
        "learning rate": f"{spec.learning_rate:g}, chosen of {made.learning_rates} by the training objective",
        "test": made.describe_test(),
        "time": f"{format_duration(made.train_seconds)} of training steps on {_hardware(made)}",
        "a grid search": f"of {made.grid_size} configurations would have taken about "
        f"{format_duration(made.grid_seconds)}: {made.grid_size} + 1 runs of {format_duration(made.run_seconds)}, "
        "as long as this one's from start to end",
        "versions": ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions),
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    package = imported_package(settings.model or "")
    allowed, option = (f', allow_import=["{package}"]', f" --allow-import {package}") if package else ("", "")
    return f"""# {spec.backbone} on {spec.dataset}

Fine-tuned with the data-emphasized ELBo, which learned the strengths of L2 regularization while the network trained,
on all training examples and without a validation set.

| | |
|---|---|
{table}

The accuracy is the mean over the classes; the calibration error is the expected one, with 15 bins (Guo et al. 2017).

    deelbo-bench predict . {inputs}{option} --out predictions.csv

```python
import deelbo

model = deelbo.load_model("."{allowed})
probabilities = model.predict(inputs)  # rows as model.transform takes them; columns as model.classes
```
"""


def _hardware(made: Finetuned) -> str:
    facts = made.record.hardware
    threads = facts.get("threads", 1)
    return str(facts.get("gpu") or f"{facts.get('cpu', 'a CPU')} ({threads} thread{'s' * (threads != 1)})")


def _escape(name: str) -> str:
    """Return a class's name so that Markdown shows it as it is, in one line."""
    shown = single_line(name, 80)
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>|#" else char for char in shown)
