"""The teacher's network, and everything that its logits depend on: the key of what is cached of it."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import PIL
import segmentation_models_pytorch as smp
import timm
import torch

from kd.data.files.pixels import Pixels
from kd.experiment.context import RunContext
from kd.networks import saved
from kd.networks.network import Segmenter
from kd.networks.precision import Precision
from kd.networks.spec import read_spec
from kd.settings import ForeignTeacher
from kd.system.files import digest, json_digest
from kd.system.places import CACHE

FORMAT = 1  # increase when the same settings give other logits


def teacher_network(context: RunContext, file: Path) -> Segmenter:
    """The teacher's network on the device; built once per process, for all trials that it runs."""
    teacher, data = context.settings.teacher, context.data
    foreign = None
    if isinstance(teacher, ForeignTeacher):
        foreign = teacher, data.classes, data.class_names, data.image_size, data.pixels
    network = _build(file, identity_key(context, file), context.precision, foreign)
    network.class_names = data.class_names  # names are not learnt, and in no fingerprint
    return network


@lru_cache(maxsize=1)
def _build(
    file: Path, _key: str, precision: Precision,
    foreign: tuple[ForeignTeacher, int, tuple[str, ...], tuple[int, int], Pixels] | None,
) -> Segmenter:  # fmt: skip
    if foreign is None:
        return precision.place(saved.load_file(file)).requires_grad_(False).eval()
    from kd.distillation.foreign.load import load

    teacher, classes, class_names, image_size, pixels = foreign
    return load(teacher, file, classes, class_names, image_size, precision, pixels)


def _identity(context: RunContext, file: Path) -> dict[str, Any]:
    """What a teacher is: its weights, and how a network is made from them."""
    if isinstance(context.settings.teacher, ForeignTeacher):
        from kd.distillation.foreign.load import follows_from

        return follows_from(context.settings.teacher, file)
    spec = read_spec(file).model_dump(mode="json", exclude={"class_names"})  # including normalisation
    return {"weights": digest(file), "network": spec}


def identity_key(context: RunContext, file: Path) -> str:
    """A digest of a teacher's weights and of how a network is made from them."""
    return cache_key(_identity(context, file))


def weight_files(context: RunContext, file: Path) -> tuple[Path, ...]:
    """The files that hold a teacher's weights."""
    if isinstance(context.settings.teacher, ForeignTeacher):
        from kd.distillation.foreign.load import parts

        return parts(context.settings.teacher, file)
    return (file,)


def provenance(context: RunContext, file: Path) -> dict[str, Any]:
    """Everything that any of a teacher's logits depends on, as plain JSON."""
    precision = context.precision
    return {
        "format": FORMAT,
        **_identity(context, file),
        "data": context.data.fingerprint(),
        "precision": precision.name,
        "channels_last": precision.channels_last,
        "device": _hardware(precision.device),
        "torch": torch.__version__,
        "smp": smp.__version__,
        "timm": timm.__version__,
    }


def decoders() -> dict[str, str]:
    """The versions of the libraries that decode and resize pictures."""
    return {"opencv": cv2.__version__, "pillow": PIL.__version__}


def _hardware(device: torch.device) -> str:
    """The hardware that the last bits of a logit may depend on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return device.type


def cache_key(facts: dict[str, Any]) -> str:
    """A hash of plain JSON, 16 hexadecimal digits."""
    return json_digest(facts)[:16]


def cache_folder(context: RunContext) -> Path:
    """The folder of everything that is cached."""
    return context.settings.root / CACHE
