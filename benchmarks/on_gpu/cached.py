"""The teacher's cache: that no student differs by it, and what a step costs without, while it fills, and with it."""

import copy
import statistics
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.on_gpu.setting import apart, context_of, deterministic, live, pair, training
from benchmarks.on_gpu.supervise import On
from kd.distillation.logit_cache import LogitCache
from kd.distillation.teacher import CachedTeacher
from kd.experiment.builders import build_train_loader
from kd.experiment.context import RunContext
from kd.networks.network import Network
from kd.training.replica import digest

Networks = tuple[Network, Network]


def cache(on: On, classes: int) -> None:
    """Without augmentation, so that every epoch after the first finds its answers; read by the loader's workers."""
    with TemporaryDirectory(dir=on.shared) as place:
        _same(on, classes, Path(place) / "same")
        side, batch, images, workers = (64, 4, 8, 2) if on.small else (640, 16, 128, 8)
        context = context_of(on, side, batch, images, classes, "trainer.precision=bf16", f"trainer.workers={workers}")
        networks, found = pair(replace(context, workers=0)), {}
        for name, teacher in (("alone", None), ("off", live(networks[1], context))):
            epochs = training(context, copy.deepcopy(networks[0]), teacher, build_train_loader(context, 0))
            found[name] = statistics.median(_ms(context, result) for result in islice(epochs, 1, 4))
            on.note(ms_a_step=found)
        epochs = _cached(context, copy.deepcopy(networks[0]), networks[1], Path(place) / "timed")
        found["cold"] = _ms(context, next(epochs))
        found["warm"] = statistics.median(_ms(context, result) for result in islice(epochs, 1, 4))
        on.note(ms_a_step=found)


def _same(on: On, classes: int, folder: Path) -> None:
    """Three epochs without and with a cache, by algorithms that repeat."""
    side, batch = (64, 4) if on.small else (128, 8)
    context = context_of(on, side, batch, 4 * batch, classes)
    with deterministic():
        student, teacher = pair(context)
        off, on_disk = copy.deepcopy(student), copy.deepcopy(student)
        for _ in islice(training(context, off, live(teacher, context), build_train_loader(context, 0)), 3):
            pass
        for _ in islice(_cached(context, on_disk, teacher, folder), 3):
            pass
    on.note(weights_apart=apart(on_disk, off))
    on.check("off, cold and warm: the same student", digest(on_disk) == digest(off))


def _cached(context: RunContext, student: Network, teacher: Network, folder: Path) -> Any:
    """A training whose first epoch fills an empty cache, and whose others find everything in it."""
    data = context.data
    answers = LogitCache(folder / "teacher" / "answers", data.size("train"), (data.classes, *data.image_size))
    asked = CachedTeacher(live(teacher, context), {"train": [answers]})
    for result in training(context, student, asked, build_train_loader(context, 0, {"train": [answers]})):
        asked.flush()
        yield result


def _ms(context: RunContext, result: Any) -> float:
    return 1000 * context.settings.trainer.batch_size / result.images_per_second
