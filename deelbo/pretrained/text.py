"""Text classifiers of Hugging Face's transformers: their networks, their pretrained weights, and their download.

A model is a folder, or a name that is in Hugging Face's cache. No code that comes with it is run, and only `download`
uses the network. transformers takes seconds to import, so this module is imported where such a network is used.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deelbo._random import seeded
from deelbo.data.integrity import DataError
from deelbo.data.texts import INSTALL, find_model, load_tokenizer
from deelbo.pretrained.tensor_files import one_line

LOCAL = {"local_files_only": True, "trust_remote_code": False}
FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")
"""What `download` takes of a model: settings, tokenizer and weights, but no code and no pickles."""


POOLER = ".pooler."
CLASSES = 2  # of a head that is not used


class TextClassifier(nn.Module):
    """Logits (B, classes) of texts from their token ids (B, L), by a classifier of transformers."""

    def __init__(self, network: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.network, self.pad_id = network, pad_id

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.pad_id
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to be waited for
            length = int(mask.any(0).nonzero().max()) + 1  # the columns after it are padding in all rows
            ids, mask = ids[:, :length], mask[:, :length]
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask.long()).logits
        return logits


def build_classifier(model: str, num_classes: int) -> TextClassifier:
    """Return the network of a model with random weights and a head of ``num_classes``, in training mode.

    Dropout is that of its config.json.

    Raises:
        ValueError: transformers or the model is missing, or it is no text classifier; one line.
    """
    transformers, config = _config(model, num_classes)
    with _errors(model), _quiet():
        network = transformers.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return TextClassifier(network.float(), config.pad_token_id)


def read_weights(model: str) -> dict[str, Tensor]:
    """Return the pretrained weights of a model, in float32, by their names in a `TextClassifier`, without its head.

    Only weights after the encoder may be missing, such as BERT's pooler: they are those of a random initialization, the
    same at every call, and a warning names them.

    Raises:
        ValueError: transformers or the model is missing, or its weights are damaged or another network's; one line.
    """
    transformers, config = _config(model, CLASSES)
    with _errors(model), _quiet(), seeded(0):
        network, found = transformers.AutoModelForSequenceClassification.from_pretrained(
            find_model(model),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **LOCAL,
        )
    heads = {name for name, layer in network.named_modules() if getattr(layer, "out_features", None) == CLASSES}
    if differs := [key for key, shape, own in found["mismatched_keys"] if tuple(shape[1:]) != tuple(own[1:])]:
        raise ValueError(f"the weights of {model} do not fit its config.json: {differs[0]} has another shape")
    missing = sorted(name for name in found["missing_keys"] if name.rpartition(".")[0] not in heads)
    if absent := [name for name in missing if name.startswith(f"{network.base_model_prefix}.") and POOLER not in name]:
        raise ValueError(f"the weights of {model} do not fit its config.json: {absent[0]} is missing")
    if missing:
        warnings.warn(f"{model} lacks weights, which are initialized randomly: {', '.join(missing)}", stacklevel=2)
    weights = TextClassifier(network, config.pad_token_id).state_dict()
    weights = {name: w for name, w in weights.items() if name.removeprefix("network.").rpartition(".")[0] not in heads}
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{model}: {name} holds NaN or infinity: give weights that are finite")
    return weights


def describe(model: str, max_length: int | None) -> str:
    """Return a text that differs between networks of other settings, vocabularies or lengths of texts."""
    tokenizer, _, longest = load_tokenizer(model, max_length)
    settings = _config(model, CLASSES)[1].to_diff_dict()
    for name in ("transformers_version", "_name_or_path"):
        settings.pop(name, None)
    vocabulary = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    return f"{json.dumps(settings, sort_keys=True, default=str)} {vocabulary} {longest}"


def settings_files(model: str) -> dict[str, bytes]:
    """Return the files of a model's settings and tokenizer by name, as transformers writes them; they name no path."""
    _, config = _config(model, CLASSES)
    tokenizer, _, _ = load_tokenizer(model, None)
    with tempfile.TemporaryDirectory(prefix="deelbo-text-") as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads(files[name])
        content.pop("name_or_path" if name.startswith("tokenizer") else "_name_or_path", None)
        files[name] = json.dumps(content, indent=1).encode()
    return files


def download(model: str) -> str:
    """Download a model's settings, tokenizer and weights into Hugging Face's cache, and return their folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"{model} needs the package {error.name}, which is not installed: {INSTALL}") from None
    try:
        return str(snapshot_download(model, allow_patterns=list(FILES)))
    except Exception as error:
        remedy = "try again with a network, or give the folder of a model"
        raise ValueError(f"{model} could not be downloaded from Hugging Face ({one_line(error)}): {remedy}") from error


def _config(model: str, num_classes: int) -> tuple[Any, Any]:
    """Return transformers, and the settings of a model with a head of ``num_classes``."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{model} needs the package {error.name}, which is not installed: {INSTALL}") from None
    with _errors(model):
        config = transformers.AutoConfig.from_pretrained(find_model(model), num_labels=num_classes, **LOCAL)
    if config.pad_token_id is None:
        raise ValueError(f"{model} has no pad_token_id in its config.json: write the id of its padding there")
    return transformers, config


@contextmanager
def _errors(model: str) -> Iterator[None]:
    """Turn any error inside the block into a ValueError of one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of safetensors, of the hub, and RuntimeError of weights that do not fit
        remedy = "give a folder with config.json and model.safetensors, or run `deelbo-bench prepare CONFIG`"
        raise ValueError(f"{model} cannot be used ({one_line(error)}): {remedy}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing progress and what it loads, inside the block."""
    from transformers.utils import logging

    verbosity, has_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_progress:
            logging.enable_progress_bar()
