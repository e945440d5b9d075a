"""A teacher's metrics and validation labels, measured once and cached below runs/cache for later runs."""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd.errors import DiskError
from kd.experiment.builders import build_diagnostics
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator, measure
from kd.experiment.teacher_network import cache_folder, cache_key, decoders, provenance, teacher_network, weight_files
from kd.system import tensor_file
from kd.system.files import touch, write_atomically
from kd.training.diagnostics import tensors
from kd.training.evaluation import Labels

FORMAT = 3  # increase when a teacher's measurements change

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredTeacher:
    """A teacher and its measurements.

    Attributes:
        file: its weights.
        metrics: size, speed and quality; see `kd.experiment.evaluator.measure`.
        labels: its labels over the validation split, of each picture H x W uint8.
        diagnostics: tensors named <split>/<name>; see `kd.training.diagnostics.Diagnostics.tensors`.
    """

    file: Path
    metrics: dict[str, Any]
    labels: Labels
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def batches(self, batch_size: int) -> tuple[Tensor, ...]:
        """The labels, batch by batch; pictures of their own sizes are batches of 1."""
        if isinstance(self.labels, Tensor):
            return torch.split(self.labels, batch_size)
        return tuple(labels[None] for labels in self.labels)


def measured_teacher(evaluator: Evaluator, file: Path) -> MeasuredTeacher:
    """The teacher with the weights of `file`, and its measurements, from the cache unless teacher.cache=off."""
    context, world = evaluator.context, evaluator.context.world
    mode, path = context.settings.teacher.cache, _cache_file(context, file)
    if cached := world.broadcast(_read(path, file) if world.is_main and mode != "off" else None):
        if world.is_main and mode == "auto":
            touch(path)
        return cached
    diagnostics = build_diagnostics(context)
    metrics, labels = measure(evaluator, teacher_network(context, file), file, diagnostics)
    metrics["file_bytes"] = sum(part.stat().st_size for part in weight_files(context, file))
    teacher = MeasuredTeacher(file, metrics, labels, tensors(diagnostics))
    if world.is_main and mode == "auto":
        _write(path, teacher)
    return teacher


def _cache_file(context: RunContext, file: Path) -> Path:
    facts = provenance(context, file) | {
        "figures": FORMAT,
        **decoders(),
        **context.data.measuring_facts(),
        "class_names": context.data.class_names,
        "batch_size": context.settings.trainer.batch_size,
        "machine": platform.node(),  # which the latency depends on
    }
    return cache_folder(context) / "figures" / f"{cache_key(facts)}.safetensors"


def _read(path: Path, file: Path) -> MeasuredTeacher | None:
    """A teacher's cached measurements; None if missing or damaged."""
    if not path.exists():
        return None
    try:
        found, facts = tensor_file.read(path)
        return MeasuredTeacher(file, facts["figures"], _unpacked(found), found)
    except tensor_file.DAMAGES as error:
        log.warning("%s is damaged (%s); the teacher is measured again", path, tensor_file.reason(error))
        return None


def _packed(labels: Labels) -> dict[str, Tensor]:
    """Labels as tensors of a file: where sizes differ, one after the other, with their sizes."""
    if isinstance(labels, Tensor):
        return {"labels": labels}
    sizes = torch.tensor([each.shape for each in labels])
    return {"labels": torch.cat([each.reshape(-1) for each in labels]), "label_sizes": sizes}


def _unpacked(found: dict[str, Tensor]) -> Labels:
    """The labels among the tensors of a file, which are taken out."""
    labels, sizes = found.pop("labels"), found.pop("label_sizes", None)
    if sizes is None:
        return labels
    parts = torch.split(labels, sizes.prod(1).tolist())
    return [part.view(*size) for part, size in zip(parts, sizes.tolist(), strict=True)]


def _write(path: Path, teacher: MeasuredTeacher) -> None:
    found = {**_packed(teacher.labels), **teacher.diagnostics}
    facts = {"teacher": str(teacher.file), "figures": teacher.metrics}
    try:
        write_atomically(path, lambda temporary: tensor_file.write(temporary, found, facts))
    except DiskError as error:
        log.warning("teacher.cache: %s", error)
