"""The .json beside a weights file, which describes the network in plain strings and numbers.

Light, so that an unsuitable teacher is refused before torch is imported.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from kd.data.files.pixels import USUAL, Pixels
from kd.data.files.stored import MOST_CHANNELS
from kd.errors import ModelError
from kd.system.untrusted import UnreadableError, parse_json, read_named, regular_in

Described = TypeVar("Described", bound=BaseModel)


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("contains non-printable characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
#: A decoder's channels: more is a mistake, or an attack on the memory, since networks are built before they are filled.
MOST_WIDTH = 1024
Width = Annotated[PositiveInt, Field(le=MOST_WIDTH)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NetworkSpec(BaseModel):
    """The .json beside a .safetensors: `classes` 1 is binary; `mean` and `std` are of each channel in [0, 1].

    `channels` and `depth` are what pictures store; they are left out if they are RGB of 8 bits.

    Names are only looked up in the libraries' own lists (`kd.networks.build`).
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    arch: Name
    encoder: Name
    classes: Annotated[int, Field(strict=True, ge=1, le=255)]  # the limit of 8-bit masks
    class_names: tuple[Name, ...]
    channels: Annotated[int, Field(strict=True, ge=1, le=MOST_CHANNELS)] = USUAL.channels
    depth: Literal[8, 16, "float"] = 8
    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]
    decoder_channels: Annotated[tuple[Width, ...], Field(max_length=8)] | Width | None = None

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.channels, self.depth)

    @model_serializer(mode="wrap")
    def _without_usual(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Its fields, without pixels that are the usual ones: older files, and digests of them, know no others."""
        found: dict[str, Any] = serialise(self)
        return {key: value for key, value in found.items() if not self.pixels.usual or key not in ("channels", "depth")}

    @field_validator("mean", "std")
    @classmethod
    def _one_number_per_channel(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("channels", len(values))
        if len(values) != channels:
            raise ValueError(f"{len(values)} numbers do not match {channels} channels")
        return values

    @field_validator("class_names")
    @classmethod
    def _one_name_per_label(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        classes = info.data.get("classes", len(names))
        if len(names) != max(classes, 2):
            raise ValueError(f"{len(names)} names do not match {classes} classes")
        return names


def described(path: Path, kind: type[Described]) -> Described:
    """Parse a JSON description of at most untrusted.DOCUMENT bytes; links are followed.

    Raises:
        UnreadableError: it is missing, or not a regular file.
        ValueError: it is not JSON, out of bounds, or (pydantic's) not such a description.
    """
    return kind.model_validate(parse_json(read_named(path)))


def read_spec(weights: Path) -> NetworkSpec:
    """Read the description beside a .safetensors file.

    Raises:
        ModelError: it is missing, is not JSON, or does not describe a network.
    """
    path = weights.with_suffix(".json")
    try:
        return described(path, NetworkSpec)
    except UnreadableError as error:
        raise ModelError(f"{path} {error.reason}; it describes the network in {weights.name}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])) or "content", first["msg"].removeprefix("Value error, ")
        raise ModelError(
            f"{path}: {where}: {what}; restore the file that was saved with {weights.name}, or correct it"
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON ({error})") from error


def is_file(path: Path) -> bool:
    """Whether a path is a file; also False for impossible paths, such as a name of 300 characters."""
    try:
        return path.is_file()
    except OSError:
        return False


def expanded(path: Path) -> Path:
    """A path with ~ expanded; unchanged if ~user is unknown."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def find_weights(path: Path, key: str, names: tuple[str, ...] = ("teacher.safetensors", "student.safetensors")) -> Path:
    """The weights file of a path: a .safetensors file, or the first of `names` that exists in a run folder.

    A file may be a link; in a run folder, neither the weights nor the .json beside them may be a link out of it.

    Raises:
        ModelError: no such file exists; `key` is the option that named the path.
    """
    home = expanded(path)
    if is_file(home) and home.suffix == ".safetensors":
        return home
    for file in () if is_file(home) else (home / name for name in names):
        if is_there(file):
            _check_both(file, key)
            return file
    raise ModelError(
        f"{key}={path}: no weights found; give a .safetensors file or a run folder",
        page="your-teacher" if key == "teacher.path" else "networks",
    )


def is_there(path: Path) -> bool:
    """Whether there is anything at a path, a broken link included; also False for impossible paths."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def _check_both(weights: Path, key: str) -> None:
    """Check that weights and the description beside them, if there is one, are regular files of their folder."""
    for file in (weights, weights.with_suffix(".json")):
        try:
            if file == weights or is_there(file):
                regular_in(file.parent, file.name)
        except UnreadableError as error:
            raise ModelError(f"{key}={file.parent}: {file.name} {error.reason}; give another folder") from error
