"""The teachers of conf/teacher: trained first, a file of this project, or one that was trained elsewhere."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from kd.settings.backbone import NamedNormalisation
from kd.settings.group import Epochs, Group, NonNegative, Positive, Seed


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
    seed: Seed

    @model_validator(mode="after")
    def _check_any_term(self) -> "TrainedTeacher":
        if self.gamma == self.delta == 0:
            raise ValueError("gamma and delta are both 0, so the teacher would learn nothing; set one above 0")
        return self

    @property
    def training(self) -> dict[str, Any]:
        """The values that determine the trained teacher."""
        return self.model_dump(exclude={*Cached.model_fields})


TeacherSettings = Annotated[
    Annotated[TrainedTeacher, Tag("auto")]
    | Annotated[TeacherFile, Tag("file")]
    | Annotated[ForeignTeacher, Tag("foreign")],
    Discriminator(lambda node: "foreign" if "kind" in node else "file" if "path" in node else "auto"),
]
