"""What a run is asked to do, as typed, checked, frozen values: the plain part of the configuration.

Each class mirrors one group of conf/. Everything below the composing module takes these (or plain Python) and never a
DictConfig. No torch here: a wrong value must be reported before anything heavy is imported.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kd.data import Source
from kd.plan.schedules import Schedule
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import Policy

Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
Epochs = Annotated[PositiveInt, Field(le=100_000)]  # a plan is a list of them
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_WORKERS = 1024  # more are a slip, and would bring the machine down

#: Keys that say how a result is come by, and change none.
CACHE_KEYS = ("data.cache", "data.cache_gb", "teacher.cache", "teacher.cache_gb")


def is_under(key: str, groups: Iterable[str]) -> bool:
    """Whether a dotted key is one of `groups`, or stands below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


#: Metrics that `objective` may name, beside val/iou/<class>; True where more is better.
OBJECTIVES = {
    "val/miou": True,
    "val/dice": True,
    "val/loss": False,
    "val/teacher_agreement": True,
    "student/latency_ms": False,
    "student/parameters": False,
}


def more_is_better(objective: str) -> bool:
    """The direction in which an objective improves."""
    return OBJECTIVES.get(objective, True)


class Group(BaseModel):
    """A config group: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("should be no true or false")
        return value


class NetworkSettings(Group):
    """A network as plain strings, in segmentation-models-pytorch's names.

    `weights` is null (random), a name that smp knows for the encoder (imagenet), or the path of a file of encoder
    weights: safetensors, or a plain state dict.
    """

    arch: str
    encoder: str
    weights: str | None = None


class Backbone(Group):
    student: NetworkSettings
    teacher: NetworkSettings


class LossWeights(Group):
    """Weights of total = alpha T^2 KL + beta MSE(logits) + gamma CE + delta Dice."""

    alpha: NonNegative
    beta: NonNegative
    gamma: NonNegative
    delta: NonNegative

    @model_validator(mode="after")
    def _some_term(self) -> "LossWeights":
        if self.alpha == self.beta == self.gamma == self.delta == 0:
            raise ValueError("alpha, beta, gamma and delta are all 0; give at least one a weight")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at the teacher; without one, none is built."""
        return self.alpha > 0 or self.beta > 0


class Optimizer(Group):
    """AdamW, a half cosine from `lr` towards `min_lr`, gradients clipped at the norm `clip_norm` (null: not)."""

    lr: Positive
    min_lr: NonNegative
    weight_decay: NonNegative
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    encoder_lr_scale: Positive
    depth_decay: Annotated[float, Field(gt=0, le=1)]
    clip_norm: Positive | None

    @model_validator(mode="after")
    def _falls(self) -> "Optimizer":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not be above lr={self.lr:g}, but got {self.min_lr:g}")
        return self

    @property
    def rates(self) -> LearningRates:
        return LearningRates(self.lr, self.min_lr, self.encoder_lr_scale, self.depth_decay)


class Augment(Group):
    """albumentations transforms as `_target_` mappings, built when training starts, and how many views of a sample.

    `views` null: every epoch sees a new one; K: epochs see K in turn.
    """

    transforms: list[dict[str, Any]]
    views: PositiveInt | None


class Cached(Group):
    """Whether a teacher's answers are kept on the disk, in at most `cache_gb` gigabytes for all teachers together."""

    cache: Literal["auto", "off", "read_only"]
    cache_gb: NonNegative

    @field_validator("cache", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of it


class TeacherFile(Cached):
    """A teacher that exists: a .safetensors file, or the folder of the run that made it."""

    path: str


class Normalisation(Group):
    """What a network wants to be fed: (x - mean) / std of RGB, after x in [0, 1] was multiplied by `scale`."""

    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    scale: Positive = 1.0


#: The names that a normalisation may have in a configuration.
NORMALISATIONS = {
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "none": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
}


class ForeignTeacher(Cached):
    """A teacher that was trained elsewhere: smp's save_pretrained, torchvision's networks, or an exported network.

    `class_map` has the teacher's channel of each of the data's classes (for binary data: of background, foreground);
    null where they are the same. `model` is torchvision's name of the network.
    """

    kind: Literal["smp", "torchvision", "exported"]
    path: str
    normalisation: Normalisation
    class_map: tuple[Annotated[int, Field(strict=True, ge=0)], ...] | None
    model: str = ""

    @field_validator("normalisation", mode="before")
    @classmethod
    def _known_by_name(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        if value not in NORMALISATIONS:
            raise ValueError("should be imagenet, none (RGB from 0 to 1), or {mean: [r,g,b], std: [r,g,b]}")
        return NORMALISATIONS[value]

    @field_validator("class_map")
    @classmethod
    def _each_channel_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("should name each channel once: two classes cannot be told apart by one")
        return value


class TrainedTeacher(Cached):
    """A teacher that is trained first, supervised; `seed` is its own, so that students of several seeds share it."""

    epochs: Epochs
    lr: Positive
    encoder_lr_scale: Positive
    gamma: NonNegative
    delta: NonNegative
    seed: int

    @model_validator(mode="after")
    def _some_term(self) -> "TrainedTeacher":
        if self.gamma == self.delta == 0:
            raise ValueError("gamma and delta are both 0, so the teacher would learn nothing; give one a weight")
        return self

    @property
    def lesson(self) -> dict[str, Any]:
        """What decides how it turns out."""
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

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("should be auto, cpu, mps, cuda or cuda:<number>")
        return value

    @field_validator("workers", mode="before")
    @classmethod
    def _known_count(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or not 0 <= value <= MOST_WORKERS):
            raise ValueError(f"should be auto, or a number of processes, 0 or more ({MOST_WORKERS} at most)")
        return value


class Tracking(Group):
    """Where runs are mirrored. `uri` null: MLFLOW_TRACKING_URI, or the sqlite store under `root`.

    `registered_name`, in the configuration `register`: the model that the student becomes a version of; null: none.
    """

    enabled: bool
    uri: str | None
    experiment: str
    run_name: str | None
    tags: dict[str, str]
    registered_name: Annotated[str, Field(pattern=r"^[\w .-]{1,200}$")] | None = Field(None, alias="register")

    @model_validator(mode="after")
    def _somewhere_to_register(self) -> "Tracking":
        if self.registered_name is not None and not self.enabled:
            raise ValueError(f"register={self.registered_name} needs tracking=mlflow")
        return self


class Settings(Group):
    """One distillation, whole: what `train.py` was asked for."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    objective: tuple[str, ...]
    root: Path
    backbone: Backbone
    schedule: Schedule
    unfreeze: Policy
    loss: LossWeights
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
    pictures: bool = True  # runs of older configurations lack it

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("objective")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("should name each metric once")
        return value

    @field_validator("root", mode="before")
    @classmethod
    def _some_folder(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("should be a folder, for runs/ and mlruns/")
        return value

    @property
    def trained_teacher(self) -> TrainedTeacher:
        """The teacher that is trained first, where it is not a file."""
        if not isinstance(self.teacher, TrainedTeacher):
            raise TypeError("this teacher is a file, and is not trained")
        return self.teacher

    def timeline(self, blocks: int) -> Timeline:
        """The student's plan over an encoder of `blocks` blocks."""
        return Timeline(self.schedule, self.unfreeze, self.optimizer.rates, self.trainer.epochs, blocks)


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as dotted keys and values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
