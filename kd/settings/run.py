"""The configuration of a run as typed, validated, frozen values.

Each class mirrors one group of conf/. Code outside kd/config takes these (or plain Python), never a DictConfig.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from kd.data import Source
from kd.errors import check_address
from kd.plan.schedules import Schedule
from kd.plan.timeline import Timeline
from kd.plan.unfreeze import Policy
from kd.settings.backbone import Backbone
from kd.settings.group import Epochs, Group, Positive, Seed
from kd.settings.keys import DEVICE
from kd.settings.loss import LossSettings
from kd.settings.optimizer import Optimizer
from kd.settings.teacher import TeacherSettings, TrainedTeacher

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


class Augment(Group):
    """albumentations transforms as `_target_` mappings, instantiated when training starts.

    `views` is the number of augmented views of each sample, which the epochs cycle through; null: a new one per epoch.
    """

    transforms: list[dict[str, Any]]
    views: PositiveInt | None


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

    @property
    def backend(self) -> str | None:
        """What torch.compile compiles with; None: nothing is compiled."""
        return "inductor" if self.compile else None

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


#: Of a registered model: MLflow accepts no slash, no colon, and not only dots.
ModelName = Annotated[str, Field(pattern=r"^[\w .-]*\w[\w .-]*$", max_length=200)]


class Tracking(Group):
    """MLflow's store for the mirrored runs. `uri` null: MLFLOW_TRACKING_URI, or the sqlite store under `root`.

    `registered_name` (key `register`) names the registered model that the student becomes a version of; null: none.
    """

    enabled: bool
    uri: str | None
    experiment: str
    run_name: str | None
    tags: dict[str, str]
    registered_name: ModelName | None = Field(None, alias="register")

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

    seed: Seed
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
    teacher: TeacherSettings
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
