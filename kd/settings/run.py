"""The configuration of a run as typed, validated, frozen values.

Each class mirrors one group of conf/. Code outside kd/config takes these (or plain Python), never a DictConfig.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from kd.data import Source
from kd.data.files.stored import MOST_CHANNELS
from kd.errors import check_address
from kd.plan.schedules import Schedule
from kd.plan.timeline import Timeline
from kd.plan.unfreeze import Policy
from kd.settings.group import Finite, Group, NonNegative, Positive
from kd.settings.keys import DEVICE
from kd.settings.loss import LossSettings
from kd.settings.optimizer import Optimizer

Epochs = Annotated[PositiveInt, Field(le=100_000)]  # a timeline holds one entry per epoch
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_WORKERS = 1024  # more are surely a typo, and would exhaust the machine

#: Metrics that `objective` may name, in addition to val/iou/<class>; True if higher is better.
OBJECTIVES = {
    "val/miou": True,
    "val/dice": True,
    "val/loss": False,
    "val/teacher_agreement": True,
    "student/latency_ms": False,
    "student/parameters": False,
}


def more_is_better(objective: str) -> bool:
    """Whether an objective is maximized."""
    return OBJECTIVES.get(objective, True)


class Normalisation(Group):
    """What a network wants to be fed: (x - mean) / std of each channel, after x in [0, 1] was multiplied by `scale`.

    A pixel's x is 1 at the largest value that its bits can store; floating-point pixels are x themselves.
    """

    mean: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=MOST_CHANNELS)]
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MOST_CHANNELS)]
    scale: Positive = 1.0

    @model_validator(mode="after")
    def _check_lengths(self) -> "Normalisation":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one of each per channel")
        return self

    def unscaled(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each of `channels` channels in [0, 1]; equal numbers count for any channels.

        Raises:
            ValueError: there are others than one number per channel.
        """
        mean, std = (tuple(value / self.scale for value in values) for values in (self.mean, self.std))
        if len(mean) == channels:
            return mean, std
        if len({*mean}) == len({*std}) == 1:
            return mean[:1] * channels, std[:1] * channels
        raise ValueError(f"is of {len(mean)} channels, but data.channels={channels}: give {{mean, std}} with a number "
                         "for each, or null")  # fmt: skip


#: The names that a normalisation may have in a configuration.
NORMALISATIONS = {
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "none": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
}


def _by_name(value: Any) -> Any:
    """A normalisation's numbers where its name is given."""
    if isinstance(value, dict | Normalisation):
        return value
    if value not in NORMALISATIONS:
        raise ValueError("should be imagenet, half (0.5), none (RGB from 0 to 1), or {mean: [r,g,b], std: [r,g,b]}")
    return NORMALISATIONS[value]


NamedNormalisation = Annotated[Normalisation, BeforeValidator(_by_name)]


class NetworkSettings(Group):
    """A network by segmentation-models-pytorch's names for its architecture and encoder.

    `weights` is null (random), a name that smp knows for the encoder (imagenet), or the path of a file of encoder
    weights: safetensors, or a plain state dict. `normalisation` null: what the weights were trained with.
    `decoder_channels` null: smp's own; else a number per decoder stage, deepest first (or one number, where the
    architecture takes one).
    """

    arch: str
    encoder: str
    weights: str | None = None
    normalisation: NamedNormalisation | None = None
    decoder_channels: tuple[PositiveInt, ...] | PositiveInt | None = None


class Backbone(Group):
    student: NetworkSettings
    teacher: NetworkSettings


class Augment(Group):
    """albumentations transforms as `_target_` mappings, instantiated when training starts.

    `views` is the number of augmented views of each sample, which the epochs cycle through; null: a new one per epoch.
    """

    transforms: list[dict[str, Any]]
    views: PositiveInt | None


class Cached(Group):
    """Whether a teacher's logits are cached on disk, in at most `cache_gb` gigabytes for all teachers together.

    `stored` is how they are encoded (`kd.distillation.logit_codec`), with or without a cache.
    """

    cache: Literal["auto", "off", "read_only"]
    cache_gb: NonNegative
    stored: Literal["exact", "int8"] = "exact"  # missing in older configurations

    @field_validator("cache", mode="before")
    @classmethod
    def _false_means_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads an unquoted off as false


class TeacherFile(Cached):
    """A trained teacher of this project: its .safetensors file, or the folder of the run that trained it."""

    path: str


class ForeignTeacher(Cached):
    """A teacher trained elsewhere: smp's save_pretrained, a torchvision network, or an exported network.

    `class_map` lists the teacher's channel for each class of the data (for binary data: background, foreground); null
    if they are the same. `model` is torchvision's name of the network.
    """

    kind: Literal["smp", "torchvision", "exported"]
    path: str
    normalisation: NamedNormalisation
    class_map: tuple[Annotated[int, Field(strict=True, ge=0)], ...] | None
    model: str = ""

    @field_validator("class_map")
    @classmethod
    def _check_unique(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("should name each channel once: two classes cannot share one")
        return value


class TrainedTeacher(Cached):
    """A teacher that is trained first, supervised, with a seed of its own: students with several seeds share it."""

    epochs: Epochs
    lr: Positive
    weight_decay: NonNegative
    encoder_lr_scale: Positive
    gamma: NonNegative
    delta: NonNegative
    seed: int

    @model_validator(mode="after")
    def _check_any_term(self) -> "TrainedTeacher":
        if self.gamma == self.delta == 0:
            raise ValueError("gamma and delta are both 0, so the teacher would learn nothing; set one above 0")
        return self

    @property
    def training(self) -> dict[str, Any]:
        """The values that determine the trained teacher."""
        return self.model_dump(exclude={*Cached.model_fields})


class Trainer(Group):
    epochs: Epochs
    batch_size: PositiveInt
    accumulate: PositiveInt
    precision: Literal["fp32", "bf16", "fp16"]
    device: str
    workers: int | str
    channels_last: bool
    compile: bool
    validate_every: PositiveInt
    deterministic: bool
    nonfinite: Literal["stop", "skip"]
    checkpoint_minutes: Positive | None
    oversample: Annotated[float, Field(ge=0, le=1)] = 0.0  # missing in older configurations

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError("should be auto, cpu, mps, cuda or cuda:<number>")
        return value

    @field_validator("workers", mode="before")
    @classmethod
    def _check_workers(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or not 0 <= value <= MOST_WORKERS):
            raise ValueError(f"should be auto, or a number of processes, 0 or more ({MOST_WORKERS} at most)")
        return value


class Tracking(Group):
    """MLflow's store for the mirrored runs. `uri` null: MLFLOW_TRACKING_URI, or the sqlite store under `root`.

    `registered_name` (key `register`) names the registered model that the student becomes a version of; null: none.
    """

    enabled: bool
    uri: str | None
    experiment: str
    run_name: str | None
    tags: dict[str, str]
    registered_name: Annotated[str, Field(pattern=r"^[\w .-]{1,200}$")] | None = Field(None, alias="register")

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        check_address("tracking.uri", uri or "")
        return uri

    @model_validator(mode="after")
    def _check_register(self) -> "Tracking":
        if self.registered_name is not None and not self.enabled:
            raise ValueError(f"register={self.registered_name} needs tracking=mlflow")
        return self


class Settings(Group):
    """All settings of one distillation run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    objective: tuple[str, ...]
    root: Path
    backbone: Backbone
    schedule: Schedule
    unfreeze: Policy
    loss: LossSettings
    optimizer: Optimizer
    augment: Augment
    data: Source
    trainer: Trainer
    teacher: Annotated[
        Annotated[TrainedTeacher, Tag("auto")]
        | Annotated[TeacherFile, Tag("file")]
        | Annotated[ForeignTeacher, Tag("foreign")],
        Discriminator(lambda node: "foreign" if "kind" in node else "file" if "path" in node else "auto"),
    ]
    tracking: Tracking
    pictures: bool = True  # missing in older configurations
    quick: bool = False  # has been applied to the other values

    @field_validator("objective", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("objective")
    @classmethod
    def _check_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("should name each metric once")
        return value

    @field_validator("root", mode="before")
    @classmethod
    def _check_root(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("should be the folder that holds runs/ and mlruns/")
        return value

    @property
    def trained_teacher(self) -> TrainedTeacher:
        """The settings of a teacher that is trained first.

        Raises:
            TypeError: the teacher is a file.
        """
        if not isinstance(self.teacher, TrainedTeacher):
            raise TypeError("the teacher is a file and is not trained")
        return self.teacher

    @property
    def unlabelled_per_batch(self) -> int:
        """The number of pictures without masks in each of the student's batches; 0 if no term can use them."""
        return self.data.unlabelled_per_batch(self.trainer.batch_size) if self.loss.teaches_without_masks else 0

    def timeline(self, blocks: int) -> Timeline:
        """The student's training plan for an encoder of `blocks` blocks."""
        schedule = self.schedule if self.loss.needs_teacher else None
        return Timeline(schedule, self.unfreeze, self.optimizer.rates, self.trainer.epochs, blocks)
