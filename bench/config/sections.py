"""The sections of a configuration: training, resources, own data and backbones."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from bench.types import Count, Flag, Name, NotNegative, Number, Positive, Share, StrictModel, Unique
from deelbo.data import ImageSource, TextSource
from deelbo.limits import MIN_SIGMA
from deelbo.pretrained.registry import IMAGENET_VERSIONS, find_backbone


class Training(StrictModel):
    """Training settings of every run, whatever its method; see `deelbo.Schedule` and `deelbo.Numerics`."""

    steps: Count = 6000
    batch_size: Count = 128
    momentum: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9
    clip_norm: Positive = 1.0
    sigma: Annotated[float, Number, Field(ge=MIN_SIGMA, allow_inf_nan=False)] = 1e-4
    posterior_passes: Count = 10
    predictive_draws: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    series_points: Count = 20
    image_size: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: Flag = False
    compile: Flag = False
    batchnorm: Literal["train", "frozen"] = "train"
    train: Literal["all", "head"] = "all"


class Resources(StrictModel):
    """Resources of one trial, and the number of trials that run at once: as many as fit if ``slots`` is None."""

    cpus_per_trial: Count = 1
    gpus_per_trial: NotNegative = 0
    slots: Count | None = None
    accelerator: Name | None = None

    @model_validator(mode="after")
    def _check_accelerator(self) -> Self:
        if self.accelerator is not None and not self.gpus_per_trial:
            raise ValueError(
                f"accelerator = {self.accelerator} with gpus_per_trial = 0, expected trials that take a GPU: set "
                "gpus_per_trial to 1, or leave accelerator out"
            )
        return self


def _check_size(value: Any) -> Any:
    if value != "all" and (type(value) is not int or not 1 <= value < 2**31):
        raise ValueError("must be a whole number of at least 1, or all")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Sizes = Annotated[tuple[Annotated[int | str, BeforeValidator(_check_size)], ...], Unique]
"""Training set sizes; "all" stands for all training examples."""


class ImageSettings(StrictModel):
    """A dataset of the user's own images."""

    folder: str | None = None
    csv: str | None = None
    n: Sizes
    test_share: Share = 0.2
    unreadable: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if (self.folder is None) == (self.csv is None):
            found = "folder and csv are both given" if self.folder is not None else "neither folder nor csv is given"
            raise ValueError(f"{found}: give one of them")
        return self

    @property
    def path(self) -> str:
        """The folder or the manifest, as the configuration has it."""
        return self.folder or self.csv or ""

    def source(self, path: str) -> ImageSource:
        """Return where the images are, at a ``path`` that the reader can find."""
        return ImageSource(path, self.csv is not None, self.test_share, self.unreadable == "skip")


class TextSettings(StrictModel):
    """A dataset of the user's own texts."""

    csv: str
    text: Annotated[tuple[str, ...], BeforeValidator(_as_list), Unique]
    label: str = "label"
    n: Sizes
    test_share: Share = 0.2

    @property
    def path(self) -> str:
        """The file, as the configuration has it."""
        return self.csv

    def source(self, path: str) -> TextSource:
        """Return where the texts are, at a ``path`` that the reader can find."""
        return TextSource(path, self.text, self.label, self.test_share)


OwnSettings = ImageSettings | TextSettings


class SWAGFiles(StrictModel):
    """PTYL's prior in three files of one tensor each."""

    mean: str
    variance: str
    factor: str


def _check_swag_files(value: Any) -> Any:
    if value is not None and not isinstance(value, str | BaseModel):
        parts = value if isinstance(value, dict) else {}
        if set(parts) != {"mean", "variance", "factor"} or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError("must be a file, or {mean: FILE, variance: FILE, factor: FILE}")
    return value


Channels = Annotated[tuple[Annotated[float, Number, Field(allow_inf_nan=False)], ...], Field(min_length=1)]


class ChannelNormalization(StrictModel):
    """Channel means and standard deviations by which a network's images are normalized, of pixels from 0 to 1."""

    mean: Channels
    std: Annotated[tuple[Positive, ...], Field(min_length=1)]


class BackboneSettings(StrictModel):
    """A backbone's network, the source of its weights, the module that is its head, and the range of its inputs."""

    model: str | None = None
    weights: str | None = None
    ptyl: Annotated[str | SWAGFiles | None, BeforeValidator(_check_swag_files)] = None
    head: str | None = None
    normalization: ChannelNormalization | None = None
    max_length: Count | None = None

    def imagenet_version(self, name: str) -> str | None:
        """Return the version of torchvision's weights from which the backbone ``name`` starts; None if from others."""
        entry = find_backbone(self.model or name)
        default = IMAGENET_VERSIONS[0] if entry.weights is None and entry.torchvision is not None else None
        version = self.weights or default
        return version if version in IMAGENET_VERSIONS else None
