"""The teacher that a student trains with: live, or with its logits cached below runs/cache.

A cache folder is named by a hash of everything that its logits depend on, so another teacher, other data or another
version of torch has another folder. Outdated folders are harmless; `kd cache` lists and deletes them.
"""

from pathlib import Path
from typing import Any

import albumentations
import cv2
import PIL

from kd.distillation.logit_cache import LogitCache
from kd.distillation.teacher import CachedTeacher, LiveTeacher, Teacher
from kd.experiment.context import RunContext
from kd.experiment.teacher_network import cache_folder, cache_key, provenance, teacher_network
from kd.run import console
from kd.system.record_file import describe

GB = 10**9


def build_teacher(context: RunContext, file: Path, epochs: int) -> Teacher:
    """The teacher with the weights of `file`, as `teacher.cache` says, for a training of `epochs` epochs."""
    one_by_one = context.precision.device.type == "cpu" and context.views is not None
    live = LiveTeacher(lambda: teacher_network(context, file), context.precision, one_by_one)
    if context.settings.teacher.cache == "off":
        return live
    facts = _provenance_of_views(context, file, one_by_one)
    logit_cache = _logit_cache(context, cache_key(facts))
    if context.world.is_main:
        _report_room(logit_cache, min(epochs, context.views or epochs))
        if logit_cache.writable:
            describe(logit_cache.folder, {"teacher": str(file), **facts}, "teacher.cache")
    return CachedTeacher(live, logit_cache)


def _provenance_of_views(context: RunContext, file: Path, one_by_one: bool) -> dict[str, Any]:
    """Everything that the teacher's logits of augmented training samples depend on."""
    # A logit's last bits depend on the batch that it is computed in, or on a process's part of one.
    batch = context.precision.device.type == "cpu" and not one_by_one
    return provenance(context, file) | {
        "augment": context.settings.augment.transforms,
        "seed": context.settings.seed,
        "batch": [context.settings.trainer.batch_size, context.world.size] if batch else None,
        "albumentations": albumentations.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }


def _logit_cache(context: RunContext, key: str) -> LogitCache:
    teacher, data = context.settings.teacher, context.data
    return LogitCache(
        cache_folder(context) / "teacher" / key,
        data.size("train"),
        (data.classes, *data.image_size),
        writable=teacher.cache == "auto",
        budget=teacher.cache_gb * GB,
    )


def _report_room(logit_cache: LogitCache, views: int) -> None:
    """Print how many views' logits fit into the cache, if not all do."""
    fit, each = logit_cache.fit(views), logit_cache.samples * logit_cache.record_bytes / GB
    if fit < views and logit_cache.writable:
        console.say(
            f"teacher  logits of a view take {each:.2g} GB; {fit} of {views} views fit into teacher.cache_gb, the rest "
            "is computed live (kd cache prune frees space, augment.views=<number> needs less)"
        )
