"""The configuration of a run as typed, validated, frozen values, and which of its keys change no result.

Each class mirrors one group of conf/. Code outside kd/config takes these (or plain Python), never a DictConfig. No
torch here: an invalid value is reported before anything slow is imported.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
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
Epochs = Annotated[PositiveInt, Field(le=100_000)]  # a timeline holds one entry per epoch
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
MOST_WORKERS = 1024  # more are surely a typo, and would exhaust the machine

#: Keys, and groups of keys, that change no result: where a run is stored and shown, how its data is read and cached.
#: A resumed run, a continued study and a retried trial may change them; reports list them apart. `data.root` is one
#: because its content is compared instead (`Source.fingerprint`).
RESULT_NEUTRAL = (
    "root", "tracking", "pictures", "trainer.workers", "trainer.checkpoint_minutes", "data.root", "data.cache",
    "data.cache_gb", "teacher.cache", "teacher.cache_gb",
)  # fmt: skip


def is_under(key: str, groups: Iterable[str]) -> bool:
    """Whether a dotted key is one of `groups` or lies below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def changes_no_result(key: str) -> bool:
    """Whether a dotted key is result-neutral, whatever its value."""
    return is_under(key, RESULT_NEUTRAL)


def same_result(key: str, one: Any, other: Any) -> bool:
    """Whether two values of a key give the same result: equal ones, or any two of a result-neutral key.

    Only the kind of a `trainer.device` matters: cuda:0 is the same as cuda:1, and auto may stand for any kind.
    """
    if key == "trainer.device" and all(DEVICE.fullmatch(str(value)) for value in (one, other)):
        return len({str(value).partition(":")[0] for value in (one, other)} - {"auto"}) <= 1
    return one == other or changes_no_result(key)


def result_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ, without those that give the same result all the same."""
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if not same_result(key, one.get(key, ...), other.get(key, ...))]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping as (dotted key, value) pairs; an empty mapping is a leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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


class Group(BaseModel):
    """A config group: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where pydantic would read 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("should not be true or false")
        return value


class Normalisation(Group):
    """What a network wants to be fed: (x - mean) / std of RGB, after x in [0, 1] was multiplied by `scale`."""

    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    scale: Positive = 1.0

    @property
    def unscaled(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of RGB in [0, 1]."""
        mean, std = ((r / self.scale, g / self.scale, b / self.scale) for r, g, b in (self.mean, self.std))
        return mean, std


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


#: The weight of each term of the loss that compares student and teacher, by the term's name in metrics. Without any of
#: them, no teacher is built.
TEACHING_TERMS = {
    "kl": "alpha", "mse": "beta", "cwd": "cwd", "dist_inter": "dist_inter", "dist_intra": "dist_intra",
    "tckd": "tckd", "nckd": "nckd",
}  # fmt: skip
#: The same for the terms that compare the student with the labels.
TASK_TERMS = {"ce": "gamma", "dice": "delta"}
#: Keys of group `loss` that need three classes or more, and why. One logit z is two classes, with logits 0 and z.
THREE_CLASSES = {
    "standardise": "two standardised logits are 1 and -1, however certain the teacher is",
    "dist_inter": "the correlation of two numbers with two others is 1 or -1, without a gradient",
    "tckd": "with two classes it is the KL itself, whose weight is alpha",
    "nckd": "the only class that is not the label's always has the probability 1",
}


class LossSettings(Group):
    """Weights of the loss's terms, and how those that need a teacher are computed.

    total = alpha T^2 KL + beta MSE(logits) + cwd CWD + dist_inter and dist_intra DIST + tckd TCKD + nckd NCKD
    + gamma CE + delta Dice. A term of weight 0 is not computed. T is the schedule's; the others' temperatures are
    constants. `standardise` is of the KL's logits. `on_void`: the teacher's terms count void pixels, too.
    """

    alpha: NonNegative = 0.0
    beta: NonNegative = 0.0
    cwd: NonNegative = 0.0
    cwd_temperature: Positive = 4.0
    dist_inter: NonNegative = 0.0
    dist_intra: NonNegative = 0.0
    dist_temperature: Positive = 1.0
    tckd: NonNegative = 0.0
    nckd: NonNegative = 0.0
    dkd_temperature: Positive = 4.0
    standardise: bool = False
    on_void: bool = False
    gamma: NonNegative = 0.0
    delta: NonNegative = 0.0

    @model_validator(mode="after")
    def _check_any_term(self) -> "LossSettings":
        names = [*TEACHING_TERMS.values(), *TASK_TERMS.values()]
        if not any(getattr(self, name) for name in names):
            raise ValueError(f"{', '.join(names[:-1])} and {names[-1]} are all 0; set at least one of them above 0")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any term uses the teacher; if none does, no teacher is built."""
        return any(getattr(self, name) for name in TEACHING_TERMS.values())

    def refusal(self, classes: int) -> str | None:
        """Why the loss is not defined for so many classes (1: binary), in one line; None if it is."""
        key = next((key for key in THREE_CLASSES if getattr(self, key) and classes < 3), None)
        if key is None:
            return None
        value, off = getattr(self, key), "false" if key == "standardise" else "0"
        return f"loss.{key}={value} needs three classes or more: {THREE_CLASSES[key]}; set loss.{key}={off}"


#: The keys that only concern what is learnt from a teacher: one with a teacher and one without may differ in them.
TEACHING_KEYS = (
    "schedule", "teacher", "backbone.teacher",
    *(f"loss.{name}" for name in LossSettings.model_fields if name not in TASK_TERMS.values()),
)  # fmt: skip


class Optimizer(Group):
    """AdamW with a half cosine from `lr` to `min_lr`, and gradients clipped to the norm `clip_norm` (null: never)."""

    lr: Positive
    min_lr: NonNegative
    weight_decay: NonNegative
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    encoder_lr_scale: Positive
    depth_decay: Annotated[float, Field(gt=0, le=1)]
    clip_norm: Positive | None

    @model_validator(mode="after")
    def _check_order(self) -> "Optimizer":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not be above lr={self.lr:g}, but got {self.min_lr:g}")
        return self

    @property
    def rates(self) -> LearningRates:
        return LearningRates(self.lr, self.min_lr, self.encoder_lr_scale, self.depth_decay)


class Augment(Group):
    """albumentations transforms as `_target_` mappings, instantiated when training starts.

    `views` is the number of augmented views of each sample, which the epochs cycle through; null: a new one per epoch.
    """

    transforms: list[dict[str, Any]]
    views: PositiveInt | None


class Cached(Group):
    """Whether a teacher's logits are cached on disk, in at most `cache_gb` gigabytes for all teachers together."""

    cache: Literal["auto", "off", "read_only"]
    cache_gb: NonNegative

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

    def timeline(self, blocks: int) -> Timeline:
        """The student's training plan for an encoder of `blocks` blocks."""
        return Timeline(self.schedule, self.unfreeze, self.optimizer.rates, self.trainer.epochs, blocks)
