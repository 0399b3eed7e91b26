"""A trained network in a folder, with its preprocessing, its classes and what is known of its training.

    model.json          architecture, preprocessing, classes, metadata, and the SHA-256 hash of each other file
    model.safetensors   weights and buffers
    ...                 files of the preprocessing; of a network of transformers, its settings and tokenizer

Both are data: nothing in them is run when they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deelbo.data.examples import Transform
from deelbo.data.images import MAX_SIDE
from deelbo.devices import usable_device
from deelbo.paths import expand_user
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.registry import TEXT_PREFIX, imported_package
from deelbo.training.evaluation import BATCH_SIZE
from deelbo.training.numerics import Numerics

FORMAT = 1
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
MAX_DESCRIPTION_BYTES = 10_000_000
MAX_CLASSES = 100_000
DTYPES = ("uint8", "int32", "int64", "float32")
TRANSFORMS = {"Transform": "deelbo.data.examples", "ImageTransform": "deelbo.data.images"}
"""Modules of the transforms that a saved model may name. Others are known once their module has been imported."""


@dataclass(frozen=True)
class SavedModel:
    """A trained network and what is needed to use it.

    Attributes:
        network: in evaluation mode.
        transform: makes the network's input from rows of `deelbo.data.Examples.inputs`; fitted.
        classes: names of the outputs.
        backbone, head, image_size: the arguments of `deelbo.pretrained.backbones.build_backbone`.
        input_shape: shape of one row of the inputs that it was trained on, images of another size are resized; ():
            not known.
        input_dtype: torch's name of their type.
        numerics: precision and memory layout with which it was evaluated.
        metadata: JSON content, such as learned strengths, metrics and versions.
    """

    network: nn.Module
    transform: Transform
    classes: tuple[str, ...]
    backbone: str
    head: str | None = None
    image_size: int | None = None
    input_shape: tuple[int, ...] = ()
    input_dtype: str = "uint8"
    numerics: Numerics = field(default_factory=Numerics)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Return the model on another device; its network is moved, not copied."""
        device = torch.device(device)
        return replace(self, network=self.network.to(device), transform=self.transform.to(device))

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Return the probabilities of the classes, float32 (n, classes) on the CPU.

        Args:
            inputs: rows as in `deelbo.data.Examples.inputs`; for images, uint8 pixels (n, channels, height, width).

        Raises:
            ValueError: they have another type or number of dimensions than those that it was trained on.
        """
        self._check(inputs)
        self.network.eval()
        device, probabilities = self.device, []
        with self.numerics.backend_flags():
            for part in inputs.split(BATCH_SIZE):
                x = self.numerics.to_memory_format(self.transform.evaluation(part.to(device)))
                with self.numerics.autocast(device):
                    logits = self.network(x).float()
                probabilities.append(logits.softmax(1).cpu())
        return torch.cat(probabilities) if probabilities else torch.empty(0, len(self.classes))

    def _check(self, inputs: Tensor) -> None:
        dtype, num_dims = str(inputs.dtype).removeprefix("torch."), len(self.input_shape)
        if self.input_shape and (dtype != self.input_dtype or inputs.dim() != num_dims + 1):
            expected = f"{self.input_dtype} {('n', *self.input_shape)}".replace("'", "")
            raise ValueError(f"inputs are {dtype} {tuple(inputs.shape)}, expected {expected}: give rows of that kind")


def save_model(model: SavedModel, folder: str | Path) -> None:
    """Write a model to a folder; `load_model` is the inverse. The description is written last."""
    folder = expand_user(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in model_files(model).items():
        (folder / name).write_bytes(content)


def model_files(model: SavedModel) -> dict[str, bytes]:
    """Return the files of a model by name, the description last.

    Raises:
        ValueError: the network or its preprocessing cannot be written as data.
    """
    from safetensors.torch import save

    state = model.network.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"the network's state {others[0]} is not a tensor, and cannot be saved as one")
    # copied, as safetensors refuses tensors that share memory
    tensors = {name: value.to("cpu", copy=True, memory_format=torch.contiguous_format) for name, value in state.items()}
    files = {WEIGHTS: save(tensors)} | model.transform.files()
    backbone = model.backbone
    if backbone.startswith(TEXT_PREFIX):
        from deelbo.pretrained.text import settings_files

        files |= settings_files(backbone.removeprefix(TEXT_PREFIX))
        backbone = f"{TEXT_PREFIX}."  # the folder itself, wherever it will be
    for name in files:
        _check_name(name)
    content = {
        "format": FORMAT,
        "backbone": backbone,
        "head": model.head,
        "image_size": model.image_size,
        "inputs": {"shape": list(model.input_shape), "dtype": model.input_dtype},
        "classes": list(model.classes),
        "transform": {"kind": type(model.transform).__name__} | model.transform.to_json(),
        "numerics": {"precision": model.numerics.precision, "channels_last": model.numerics.channels_last},
        "files": {name: hashlib.sha256(value).hexdigest() for name, value in files.items()},
        "metadata": dict(model.metadata),
    }
    return files | {DESCRIPTION: json.dumps(content, indent=1, allow_nan=False).encode()}


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", allow_import: Collection[str] = ()
) -> SavedModel:
    """Return the model that `save_model` wrote, in evaluation mode.

    Args:
        folder: with model.json and the files that it names.
        device: where the network is put.
        allow_import: packages that may be imported where the network is one of the user's own, PACKAGE.MODULE:FUNCTION.

    Raises:
        ValueError: no model is there, or it is damaged, or of another version; one line.
    """
    folder, place = expand_user(folder), usable_device(device)
    allowed = [allow_import] if isinstance(allow_import, str) else allow_import  # a text has its parts, too
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} has no {DESCRIPTION}: give the folder of a saved model")

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    files, content = read_files(read, str(folder))
    if (package := imported_package(str(content.get("backbone")))) is not None and package not in allowed:
        found = f"{folder / DESCRIPTION} names the network {str(content['backbone'])[:100]}, which is code"
        raise ValueError(f"{found}: if you trust it, allow_import=[{package[:60]!r}], or --allow-import")
    if content.get("backbone") == f"{TEXT_PREFIX}.":
        content["backbone"] = f"{TEXT_PREFIX}{folder.absolute()}"
    try:
        return _build(content, files).to(place)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be used ({_one_line(error)}): save the model again") from error


def read_files(read: Callable[[str], bytes | None], place: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of a saved model, after a comparison with their hashes, and the content of its description.

    Args:
        read: returns the content of a file of that name; None if there is none.
        place: the folder, for messages.

    Raises:
        ValueError: a file is missing, damaged or of another version; one line that names it.
    """
    description = read(DESCRIPTION)
    if description is None:
        raise ValueError(f"{place}/{DESCRIPTION} is missing: save the model again")
    files = {}
    try:
        if len(description) > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"{len(description)} bytes, expected at most {MAX_DESCRIPTION_BYTES}")
        content = json.loads(description)
        if (version := content["format"]) != FORMAT:
            raise ValueError(f"format = {str(version)[:20]}, expected {FORMAT}")
        hashes = {_check_name(name): str(value) for name, value in content["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        problem = f"{place}/{DESCRIPTION} does not describe a model ({_one_line(error)})"
        raise ValueError(f"{problem}: save the model again") from None
    for name, expected in hashes.items():
        if (value := read(name)) is None:
            raise ValueError(f"{place}/{name} is missing: copy the whole folder again")
        if hashlib.sha256(value).hexdigest() != expected:
            raise ValueError(f"{place}/{name} is damaged, its hash is not that in {DESCRIPTION}: copy it again")
        files[name] = value
    return files | {DESCRIPTION: description}, content


def _build(content: Mapping[str, Any], files: Mapping[str, bytes]) -> SavedModel:
    from safetensors import SafetensorError
    from safetensors.torch import load

    classes = content["classes"]
    if not (isinstance(classes, list) and 0 < len(classes) <= MAX_CLASSES and all(isinstance(c, str) for c in classes)):
        raise ValueError("classes: expected a list of names")
    backbone, head, image_size = (content[name] for name in ("backbone", "head", "image_size"))
    if not isinstance(backbone, str):
        raise ValueError("backbone: expected a name")
    if image_size is not None and not (type(image_size) is int and 1 <= image_size <= MAX_SIDE):
        raise ValueError(f"image_size = {str(image_size)[:20]}, expected pixels from 1 to {MAX_SIDE}")
    network, _ = build_backbone(backbone, len(classes), head=head, image_size=image_size)
    try:
        network.load_state_dict(load(files[WEIGHTS]))
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS}: {error}") from error
    shape, dtype = tuple(content["inputs"]["shape"]), content["inputs"]["dtype"]
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in shape) or dtype not in DTYPES:
        raise ValueError(f"inputs: expected sides of at most {MAX_SIDE}, and a type of {', '.join(DTYPES)}")
    transform = dict(content["transform"])
    return SavedModel(
        network.eval(),
        _find_transform(transform.pop("kind")).from_json(transform, files),
        tuple(classes),
        backbone,
        head,
        image_size,
        shape,
        dtype,
        Numerics(**content["numerics"]),
        dict(content["metadata"]),
    )


def _find_transform(kind: str) -> type[Transform]:
    if kind in TRANSFORMS:
        found: type[Transform] = getattr(import_module(TRANSFORMS[kind]), kind)
        return found
    known = [Transform]
    for cls in known:  # grows on the way
        known += cls.__subclasses__()
        if cls.__name__ == kind:
            return cls
    raise ValueError(f"transform.kind = {str(kind)[:60]!r} is not known: import the module that defines it first")


def _check_name(name: str) -> str:
    """Return a file's name; raise ValueError if it could be a path, hidden, or the description's own."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name == DESCRIPTION:
        raise ValueError(f"file {name[:60]!r}, expected a name of letters, digits, _, - and .")
    return name


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
