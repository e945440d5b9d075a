"""What a teacher has said, kept for whoever asks again: its figures on validation and test, its answers to each view.

Both stand below runs/cache, under a hash of everything that they follow from, so that another teacher, other data or
another torch finds nothing. Nobody has to tidy up after a change; `kd cache` shows and deletes.
"""

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import albumentations
import cv2
import PIL
import torch
from torch import Tensor

from kd.distillation.logit_cache import LogitCache
from kd.distillation.teacher import CachedTeacher, LiveTeacher, Teacher
from kd.errors import DiskError
from kd.experiment.context import RunContext
from kd.experiment.trainer import figures
from kd.networks import saved
from kd.networks.network import Segmenter
from kd.networks.precision import Precision
from kd.networks.spec import read_spec
from kd.run import console
from kd.settings import ForeignTeacher
from kd.system import tensor_file
from kd.system.files import digest, touch, write_atomically
from kd.system.record_file import describe
from kd.training import diagnostics

FORMAT = 1  # raise it when the same settings would give other answers
FIGURES = 2  # raise it when other figures are taken of a teacher
GB = 10**9

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredTeacher:
    """A teacher: the file of its weights, how good it is, and its labels over the validation split, N x H x W uint8.

    `seen` is what a closer look at its predictions left, <split>/<name> as `kd.evidence.CloseLook.tensors` has it.
    """

    file: Path
    figures: dict[str, Any]
    labels: Tensor
    seen: Mapping[str, Tensor] = field(default_factory=dict)

    def batches(self, batch_size: int) -> tuple[Tensor, ...]:
        """The labels, batch by batch."""
        return torch.split(self.labels, batch_size)


def known(context: RunContext, file: Path) -> MeasuredTeacher:
    """What a teacher is and how good it is; measured once, unless teacher.cache=off."""
    mode, trainer, world = context.settings.teacher.cache, context.settings.trainer, context.world
    follows_from = _follows_from(context, file) | {
        "figures": FIGURES,
        "class_names": context.data.class_names,
        "batch_size": trainer.batch_size,
        "machine": platform.node(),  # of the latency
    }
    path = _folder(context) / "figures" / f"{_key(follows_from)}.safetensors"
    if found := world.broadcast(_kept(path, file) if world.is_main and mode != "off" else None):
        if world.is_main and mode == "auto":
            touch(path)
        return found
    looks = {split: context.look() for split in ("val", "test") if context.data.size(split)}
    measured, labels = figures(network(context, file), context, file, looks)
    measured["file_bytes"] = sum(part.stat().st_size for part in _parts(context, file))
    found = MeasuredTeacher(file, measured, torch.cat(labels), diagnostics.tensors(looks))
    if world.is_main and mode == "auto":
        _keep(path, found)
    return found


def answering(context: RunContext, teacher: MeasuredTeacher, epochs: int) -> Teacher:
    """The teacher as a student's training asks it: from the cache, where there is one, for so many epochs."""
    settings = context.settings
    on_cpu = context.precision.device.type == "cpu"
    live = LiveTeacher(lambda: network(context, teacher.file), context.precision, on_cpu and context.views is not None)
    if settings.teacher.cache == "off":
        return live
    follows_from = _follows_from(context, teacher.file) | {
        "augment": settings.augment.transforms,
        "seed": settings.seed,
        # The last bits of an answer depend on the batch that it is computed in, or on a process's part of one.
        "batch": [settings.trainer.batch_size, context.world.size] if on_cpu and not live.one_by_one else None,
        "albumentations": albumentations.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }
    folder = _folder(context) / "teacher" / _key(follows_from)
    answers = LogitCache(
        folder,
        context.data.size("train"),
        (context.data.classes, *context.data.image_size),
        writable=settings.teacher.cache == "auto",
        budget=settings.teacher.cache_gb * GB,
    )
    if context.world.is_main:
        _announce(answers, min(epochs, context.views or epochs))
    if context.world.is_main and answers.writable:
        describe(folder, {"teacher": str(teacher.file), **follows_from}, "teacher.cache")
    return CachedTeacher(live, answers)


def network(context: RunContext, file: Path) -> Segmenter:
    """The teacher's network on the device; built once in a process for all trials that it runs."""
    teacher, data = context.settings.teacher, context.data
    foreign = None
    if isinstance(teacher, ForeignTeacher):
        foreign = teacher, data.classes, data.class_names, data.image_size
    built = _built(file, _key(_made_of(context, file)), context.precision, foreign)
    built.class_names = context.data.class_names  # names are no part of what is learnt, nor of any fingerprint
    return built


@lru_cache(maxsize=1)
def _built(
    file: Path, _made: str, precision: Precision,
    foreign: tuple[ForeignTeacher, int, tuple[str, ...], tuple[int, int]] | None,
) -> Segmenter:  # fmt: skip
    if foreign is None:
        return precision.place(saved.load_file(file)).requires_grad_(False).eval()
    from kd.distillation.foreign.load import load

    teacher, classes, class_names, image_size = foreign
    return load(teacher, file, classes, class_names, image_size, precision)


def _made_of(context: RunContext, file: Path) -> dict[str, Any]:
    """What a teacher is: its weights, and what makes a network of them."""
    if isinstance(context.settings.teacher, ForeignTeacher):
        from kd.distillation.foreign.load import follows_from

        return follows_from(context.settings.teacher, file)
    spec = read_spec(file).model_dump(mode="json", exclude={"class_names"})  # normalisation included
    return {"weights": digest(file), "network": spec}


def _parts(context: RunContext, file: Path) -> tuple[Path, ...]:
    """The files that hold a teacher's weights."""
    if isinstance(context.settings.teacher, ForeignTeacher):
        from kd.distillation.foreign.load import parts

        return parts(context.settings.teacher, file)
    return (file,)


def _follows_from(context: RunContext, file: Path) -> dict[str, Any]:
    """What any answer of a teacher depends on."""
    precision = context.precision
    return {
        "format": FORMAT,
        **_made_of(context, file),
        "data": context.data.fingerprint(),
        "precision": precision.name,
        "channels_last": precision.channels_last,
        "device": _hardware(precision.device),
        "torch": torch.__version__,
    }


def _hardware(device: torch.device) -> str:
    """What the last bits of an answer may depend on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return device.type


def _key(follows_from: dict[str, Any]) -> str:
    text = json.dumps(follows_from, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _folder(context: RunContext) -> Path:
    return context.settings.root / "runs" / "cache"


def _kept(path: Path, teacher: Path) -> MeasuredTeacher | None:
    """What is known of a teacher; None where nothing is, or it is damaged."""
    if not path.exists():
        return None
    try:
        tensors, facts = tensor_file.read(path)
        return MeasuredTeacher(teacher, facts["figures"], tensors.pop("labels"), tensors)
    except tensor_file.DAMAGES as error:
        log.warning("%s is damaged (%s); the teacher is measured again", path, str(error).splitlines()[0])
        return None


def _keep(path: Path, found: MeasuredTeacher) -> None:
    facts = {"teacher": str(found.file), "figures": found.figures}
    try:
        write_atomically(
            path, lambda temporary: tensor_file.write(temporary, {"labels": found.labels, **found.seen}, facts)
        )
    except DiskError as error:
        log.warning("teacher.cache: %s", error)


def _announce(answers: LogitCache, views: int) -> None:
    """Say how much of the answers is there or fits."""
    fit, each = answers.fit(views), answers.samples * answers.record_bytes / GB
    if fit < views and answers.writable:
        console.say(
            f"teacher  answers to {views} views take {each:.2g} GB each, of which {fit} of {views} fit into "
            "teacher.cache_gb; the rest is computed live (kd cache prune makes room, augment.views=<number> needs less)"
        )
