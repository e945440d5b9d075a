"""Find and validate a foreign teacher's files. Light, so that mistakes are reported before torch is imported."""

import logging
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd.data.files.stored import MOST_CHANNELS as MOST_INPUTS
from kd.errors import ConfigError, ModelError
from kd.networks.spec import Name, described, expanded, is_file
from kd.settings import ForeignTeacher
from kd.system.untrusted import UnreadableError

HUB = "hf-hub:"
MOST_CHANNELS = 4096  # more is a mistake or an attack
SMP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Accepted file suffixes, by kind of teacher.
SUFFIXES = {"torchvision": (".safetensors", ".pth", ".pt"), "exported": (".onnx",)}
#: Formats whose loaders execute the file, and how to export each as ONNX instead (docs/adr/0011).
TORCHSCRIPT = (
    "loading TorchScript executes the file, so it is refused; if you trust it, convert it with "
    "torch.onnx.export(torch.jit.load(...), (torch.zeros(1, 3, H, W),), 'teacher.onnx', dynamo=False)"
)
TORCH_EXPORT = (
    "loading a file of torch.export executes parts of it, so it is refused; export the model as ONNX with "
    "torch.onnx.export(model, (torch.zeros(1, 3, H, W),), 'teacher.onnx', dynamo=False)"
)
REFUSED = {".pt2": TORCH_EXPORT} | dict.fromkeys((".pt", ".pth", ".ts", ".ptl", ".jit"), TORCHSCRIPT)


class SmpConfig(BaseModel):
    """The config.json that smp's save_pretrained writes: a class name and its arguments, as plain values."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model_class: Annotated[Name, Field(alias="_model_class")]
    encoder_name: Name
    in_channels: Annotated[int, Field(strict=True, ge=1, le=MOST_INPUTS)] = 3
    classes: Annotated[int, Field(strict=True, ge=1, le=MOST_CHANNELS)] = 1
    aux_params: None = None


def find(teacher: ForeignTeacher) -> Path:
    """The path of a teacher's weights file; for a model on the Hugging Face hub, its path in the hub client's cache.

    Raises:
        ModelError: the file is missing, or its format is not supported.
    """
    if teacher.kind == "smp":
        return _from_hub(teacher.path) if teacher.path.startswith(HUB) else _in_folder(teacher.path)
    file = expanded(Path(teacher.path))
    wanted = " or ".join(SUFFIXES[teacher.kind])
    if not is_file(file):
        raise ModelError(f"teacher.path={teacher.path}: no such file; give a {wanted} file")
    if teacher.kind == "exported" and file.suffix in REFUSED:
        raise ModelError(f"teacher.path={teacher.path}: {REFUSED[file.suffix]}")
    if file.suffix not in SUFFIXES[teacher.kind]:
        raise ModelError(f"teacher.path={teacher.path}: teacher={teacher.kind} takes a {wanted} file")
    return file


def _in_folder(path: str) -> Path:
    folder = expanded(Path(path))
    for name in SMP_WEIGHTS:
        if is_file(folder / name) and is_file(folder / "config.json"):
            return folder / name
    raise ModelError(
        f"teacher.path={path}: not a folder written by smp's save_pretrained (config.json beside "
        f"{' or '.join(SMP_WEIGHTS)}); give one, or {HUB}<owner>/<name>"
    )


def _from_hub(path: str) -> Path:
    """Download a repository's weights, once: the cached copy is used afterwards, so a study's teacher never changes."""
    repo, _, revision = path.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ModelError(f"teacher.path={path}: should be {HUB}<owner>/<name>, or {HUB}<owner>/<name>@<revision>")
    from huggingface_hub import hf_hub_download  # slow to import
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt

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
            f"teacher.path={path}: download failed ({type(error).__name__}), and the local hub cache has no copy; "
            f"check the name and the network, or give a folder with config.json and {SMP_WEIGHTS[0]}"
        ) from error


def smp_config(weights: Path) -> SmpConfig:
    """Read the config.json beside smp's weights.

    Raises:
        ModelError: it is missing, is not JSON, or describes a network that cannot be a teacher.
    """
    path = weights.with_name("config.json")
    try:
        return described(path, SmpConfig)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])) or "content", first["msg"]
        raise ModelError(
            f"{path}: {where}: {what}; a teacher must be saved by smp's save_pretrained with in_channels from 1 to "
            f"{MOST_INPUTS} and no aux_params"
        ) from error
    except (UnreadableError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({type(error).__name__}); save the network again") from error


def check_inputs(teacher: ForeignTeacher, takes: int, given: int) -> None:
    """Raise ConfigError unless a teacher takes images of the data's channels."""
    if takes != given:
        raise ConfigError(
            f"teacher.path={teacher.path}: this teacher takes images of {takes} channels, and data.channels={given}; "
            "give one of the same channels, or set loss=hard_only",
            page="your-teacher",
        )


def channels(teacher: ForeignTeacher, given: int, class_names: tuple[str, ...]) -> tuple[int, ...]:
    """The teacher's channel for each class of the data; a teacher with a single logit z counts as (0, z).

    Raises:
        ConfigError: `teacher.class_map` does not match the `given` channels, or is required but missing.
    """
    labels, available = len(class_names), max(given, 2)
    names = f"{labels} classes ({', '.join(class_names[:4])}{', ...' if labels > 4 else ''})"
    if teacher.class_map is None:
        if available != labels:
            raise ConfigError(
                f"teacher.path={teacher.path}: this teacher has {given} channels, the data has {names}; map each "
                f"class to a channel: teacher.class_map=[{labels} different numbers from 0 to {available - 1}]"
            )
        return tuple(range(labels))
    if len(teacher.class_map) != labels:
        raise ConfigError(
            f"teacher.class_map={list(teacher.class_map)} has {len(teacher.class_map)} channels, the data has {names}; "
            "give one per class"
        )
    if max(teacher.class_map) >= available:
        raise ConfigError(
            f"teacher.class_map={list(teacher.class_map)}: this teacher has {given} channels; give numbers from 0 to "
            f"{available - 1}"
        )
    return teacher.class_map
