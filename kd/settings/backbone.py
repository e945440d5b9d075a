"""The networks of conf/backbone, and how their pictures are normalised."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from kd.data.files.stored import MOST_CHANNELS
from kd.settings.group import Finite, Group, Positive

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
