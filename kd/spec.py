"""What stands beside a file of weights: which network it holds, in plain strings and numbers.

Light, so that a teacher that cannot teach is refused before torch is imported.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from kd.errors import ModelError

Channels = tuple[float, float, float]


class NetworkSpec(BaseModel):
    """The .json beside a .safetensors: `classes` 1 is binary; `mean` and `std` are of RGB in [0, 1]."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    arch: str
    encoder: str
    classes: Annotated[int, Field(ge=1)]
    class_names: tuple[str, ...]
    mean: Channels
    std: Channels

    @field_validator("class_names")
    @classmethod
    def _a_name_per_label(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        classes = info.data.get("classes", len(names))
        if len(names) != max(classes, 2):
            raise ValueError(f"{len(names)} names do not fit {classes} classes")
        return names


def read_spec(weights: Path) -> NetworkSpec:
    """The description beside a .safetensors file.

    Raises:
        ModelError: it is missing, is not JSON, or does not describe a network.
    """
    path = weights.with_suffix(".json")
    try:
        return NetworkSpec.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; it says which network {weights.name} holds") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error})") from error


def find_weights(path: Path, key: str, names: tuple[str, ...] = ("teacher.safetensors", "student.safetensors")) -> Path:
    """The weights that a path means: a .safetensors file, or the first of `names` in a run folder.

    Raises:
        ModelError: there is none; `key` is the option that named the path.
    """
    path = path.expanduser()
    for file in [path] if path.is_file() else [path / name for name in names]:
        if file.is_file() and file.suffix == ".safetensors":
            return file
    raise ModelError(f"{key}={path}: no weights there; give a .safetensors file, or the folder of the run that made it")
