"""What stands beside a file of weights: which network it holds, in plain strings and numbers.

Light, so that a teacher that cannot teach is refused before torch is imported.
"""

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from kd.errors import ModelError

Described = TypeVar("Described", bound=BaseModel)

LARGEST = 2**20  # bytes of a description; ours have less than a thousand


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("holds characters that do not print")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NetworkSpec(BaseModel):
    """The .json beside a .safetensors: `classes` 1 is binary; `mean` and `std` are of RGB in [0, 1].

    Strings are only that: `kd.models` looks them up in the libraries' own lists, and nowhere else.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    arch: Name
    encoder: Name
    classes: Annotated[int, Field(strict=True, ge=1, le=255)]  # what 8-bit masks can tell apart
    class_names: tuple[Name, ...]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]

    @field_validator("class_names")
    @classmethod
    def _a_name_per_label(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        classes = info.data.get("classes", len(names))
        if len(names) != max(classes, 2):
            raise ValueError(f"{len(names)} names do not fit {classes} classes")
        return names


def described(path: Path, kind: type[Described]) -> Described:
    """What a JSON file says of a network; raises OSError, ValueError (pydantic's among them) or RecursionError.

    Raises:
        ModelError: it is too large for a description.
    """
    if path.stat().st_size > LARGEST:
        raise ModelError(f"{path} has {path.stat().st_size} bytes, which is no description of a network")
    return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))


def read_spec(weights: Path) -> NetworkSpec:
    """The description beside a .safetensors file.

    Raises:
        ModelError: it is missing, is not JSON, or does not describe a network.
    """
    path = weights.with_suffix(".json")
    try:
        return described(path, NetworkSpec)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; it says which network {weights.name} holds") from error
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])) or "content", first["msg"].removeprefix("Value error, ")
        raise ModelError(
            f"{path}: {where}: {what}; put the file back that was saved with {weights.name}, or correct it"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON ({error})") from error


def is_file(path: Path) -> bool:
    """Whether a path is that of a file; False too for what no path can be, such as a name of 300 letters."""
    try:
        return path.is_file()
    except OSError:
        return False


def expanded(path: Path) -> Path:
    """A path with its ~ as a folder; as it is where that is somebody's who is not there."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def find_weights(path: Path, key: str, names: tuple[str, ...] = ("teacher.safetensors", "student.safetensors")) -> Path:
    """The weights that a path means: a .safetensors file, or the first of `names` in a run folder.

    Raises:
        ModelError: there is none; `key` is the option that named the path.
    """
    home = expanded(path)
    for file in [home] if is_file(home) else [home / name for name in names]:
        if is_file(file) and file.suffix == ".safetensors":
            return file
    raise ModelError(
        f"{key}={path}: no weights there; give a .safetensors file, or the folder of the run that made it",
        page="your-teacher" if key == "teacher.path" else "networks",
    )
