"""Which files a foreign teacher is, and what they say of themselves. Light: refuses before torch is imported."""

import logging
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd.errors import ConfigError, ModelError
from kd.networks.spec import Name, described, expanded, is_file
from kd.settings import ForeignTeacher

HUB = "hf-hub:"
MOST_CHANNELS = 4096  # more are a slip or an attack
SMP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: What a file must end in, by the kind of teacher that it is.
ENDINGS = {"torchvision": (".safetensors", ".pth", ".pt"), "exported": (".onnx", ".pt2")}
#: Programs that are not run, and what makes them into files that are (docs/adr/0011).
PROGRAMS = (".pt", ".pth", ".ts", ".ptl", ".jit")


class SmpConfig(BaseModel):
    """The config.json of smp's save_pretrained: arguments of one of its classes, as plain values."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model_class: Annotated[Name, Field(alias="_model_class")]
    encoder_name: Name
    in_channels: Literal[3] = 3
    classes: Annotated[int, Field(strict=True, ge=1, le=MOST_CHANNELS)] = 1
    aux_params: None = None


def find(teacher: ForeignTeacher) -> Path:
    """The file of a teacher's weights; of one on the Hugging Face hub, where the hub's own client keeps it.

    Raises:
        ModelError: it is not there, or is of a kind that cannot be run.
    """
    if teacher.kind == "smp":
        return _from_hub(teacher.path) if teacher.path.startswith(HUB) else _in_folder(teacher.path)
    file = expanded(Path(teacher.path))
    wanted = " or ".join(ENDINGS[teacher.kind])
    if not is_file(file):
        raise ModelError(f"teacher.path={teacher.path}: no such file; give a {wanted} file")
    if teacher.kind == "exported" and file.suffix in PROGRAMS:
        raise ModelError(
            f"teacher.path={teacher.path}: loading TorchScript executes what the file says, so it is refused; where "
            "you trust it, export it: torch.onnx.export(torch.jit.load(...), (torch.zeros(1, 3, H, W),), "
            "'teacher.onnx', dynamo=False)"
        )
    if file.suffix not in ENDINGS[teacher.kind]:
        raise ModelError(f"teacher.path={teacher.path}: teacher={teacher.kind} takes a {wanted} file")
    return file


def _in_folder(path: str) -> Path:
    folder = expanded(Path(path))
    for name in SMP_WEIGHTS:
        if is_file(folder / name) and is_file(folder / "config.json"):
            return folder / name
    raise ModelError(
        f"teacher.path={path}: no folder of smp's save_pretrained (config.json beside {' or '.join(SMP_WEIGHTS)}); "
        f"give one, or {HUB}<owner>/<name>"
    )


def _from_hub(path: str) -> Path:
    """The weights of a repository, fetched once: a teacher does not change while a study learns from it."""
    repo, _, revision = path.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ModelError(f"teacher.path={path}: should be {HUB}<owner>/<name>, or {HUB}<owner>/<name>@<revision>")
    from huggingface_hub import hf_hub_download  # takes a moment
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its attempts

    def fetched(name: str) -> Path:
        try:
            return Path(hf_hub_download(repo, name, revision=revision or None, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(repo, name, revision=revision or None))

    try:
        fetched("config.json")
        try:
            return fetched(SMP_WEIGHTS[0])
        except EntryNotFoundError:
            return fetched(SMP_WEIGHTS[1])
    except Exception as error:  # the client's own, its transport's and the system's
        raise ModelError(
            f"teacher.path={path}: could not be fetched ({type(error).__name__}), and is not in the hub's cache on "
            f"this machine; check name and network, or give a folder that holds config.json and {SMP_WEIGHTS[0]}"
        ) from error


def smp_config(weights: Path) -> SmpConfig:
    """The description beside smp's weights.

    Raises:
        ModelError: it is missing, is not JSON, or does not describe a network that can teach.
    """
    path = weights.with_name("config.json")
    try:
        return described(path, SmpConfig)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])) or "content", first["msg"]
        raise ModelError(
            f"{path}: {where}: {what}; a teacher is a network of smp's save_pretrained with in_channels=3 and no "
            "aux_params"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON ({type(error).__name__}); save the network again") from error


def channels(teacher: ForeignTeacher, given: int, class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Which of a teacher's channels each label of the data is; one that gives a single logit z counts as (0, z).

    Raises:
        ConfigError: `teacher.class_map` does not fit the `given` channels, or is needed and not there.
    """
    labels, there = len(class_names), max(given, 2)
    names = f"{labels} classes ({', '.join(class_names[:4])}{', ...' if labels > 4 else ''})"
    if teacher.class_map is None:
        if there != labels:
            raise ConfigError(
                f"teacher.path={teacher.path}: this teacher gives {given} channels, the data has {names}; say which "
                f"channel each class is: teacher.class_map=[{labels} different numbers from 0 to {there - 1}]"
            )
        return tuple(range(labels))
    if len(teacher.class_map) != labels:
        raise ConfigError(
            f"teacher.class_map={list(teacher.class_map)} has {len(teacher.class_map)} channels, the data has {names}; "
            "give one for each"
        )
    if max(teacher.class_map) >= there:
        raise ConfigError(
            f"teacher.class_map={list(teacher.class_map)}: this teacher gives {given} channels; give numbers from 0 to "
            f"{there - 1}"
        )
    return teacher.class_map
