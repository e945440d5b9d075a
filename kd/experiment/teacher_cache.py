"""The teacher that a student trains with: live, or with its logits (and features) cached below runs/cache.

A cache folder is named by a hash of everything that its logits depend on, so another teacher, other data or another
version of torch has another folder. Outdated folders are harmless; `kd cache` lists and deletes them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import albumentations

from kd.data.layout.naming import UNLABELLED
from kd.distillation.features import feature_shapes
from kd.distillation.logit_cache import LogitCache
from kd.distillation.logit_codec import CODECS, Record
from kd.distillation.teacher import CachedTeacher, LiveTeacher, Teacher
from kd.experiment.context import RunContext
from kd.experiment.teacher_network import cache_folder, cache_key, decoders, provenance, teacher_network
from kd.networks.network import Network
from kd.run import console
from kd.settings import ForeignTeacher
from kd.system.record_file import describe, file_bytes

GB = 10**9


def build_teacher(context: RunContext, file: Path, epochs: int, of_study: bool = False) -> Teacher:
    """The teacher with the weights of `file`, as `teacher.cache` says, for a training of `epochs` epochs.

    On a GPU, answers that nobody is going to read are not written: those to views that never come again, unless the
    training is a trial `of_study`, whose other trials see the same.
    """
    one_by_one = context.precision.device.type == "cpu" and context.views is not None
    stages = context.settings.loss.stages
    codec = CODECS[context.settings.teacher.stored]
    build, backend = (lambda: teacher_network(context, file)), _backend(context)
    live = LiveTeacher(build, context.precision, one_by_one, stages, codec, backend)
    if context.settings.teacher.cache == "off":
        return live
    splits = ("train", UNLABELLED) if context.settings.unlabelled_per_batch else ("train",)
    records, caches, stores = _records(context, live), {}, _stores(context, of_study)
    if context.settings.teacher.cache == "auto" and not stores and context.world.is_main:
        console.say("teacher  logits are not stored, since no view comes again: augment.views=<number> lets them")
    for split in splits:
        facts = _provenance_of_views(context, file, one_by_one, split)
        caches[split] = [_cache(context, file, facts, split, answer, stores) for answer in records.items()]
    if context.world.is_main and caches["train"][0].writable:
        _report_room(caches, [min(count, context.views or count) for count in _views(context, epochs)])
    return CachedTeacher(live, caches)


def _records(context: RunContext, live: LiveTeacher) -> dict[int | None, Record]:
    """What is stored of one picture: its logits (stage None), and its features at each stage that is asked for."""
    stages, size = context.settings.loss.stages, context.data.image_size
    features = feature_shapes(cast(Network, live.network), stages, size) if stages else ()
    shapes = zip((None, *stages), live.codecs, ((context.data.classes, *size), *features), strict=True)
    return {stage: codec.record(shape) for stage, codec, shape in shapes}


def _backend(context: RunContext) -> str | None:
    """What the teacher is compiled with; None if it is not, as those of other libraries never are."""
    settings = context.settings
    return None if isinstance(settings.teacher, ForeignTeacher) else settings.trainer.backend


def _views(context: RunContext, epochs: int) -> list[int]:
    """How many views a training shows if each is new: of the labelled samples, and of the pictures without masks."""
    pictures, size = context.settings.unlabelled_per_batch, context.settings.trainer.batch_size
    if not pictures:
        return [epochs]
    steps = epochs * max(1, context.data.size("train") // size)
    return [epochs, -(-steps // (context.data.unlabelled_size() // pictures))]


def _provenance_of_views(context: RunContext, file: Path, one_by_one: bool, split: str) -> dict[str, Any]:
    """Everything that the teacher's logits of augmented training samples, or pictures without masks, depend on."""
    # A logit's last bits depend on the batch that it is computed in, or on a process's part of one.
    batch, settings = context.precision.device.type == "cpu" and not one_by_one, context.settings
    size = settings.unlabelled_per_batch if split == UNLABELLED else settings.trainer.batch_size
    return {
        **provenance(context, file),
        **({"data": context.data.unlabelled_fingerprint()} if split == UNLABELLED else {}),
        "augment": settings.augment.transforms,
        **context.data.view_facts(),
        "seed": settings.seed,
        "batch": [size, context.world.size] if batch else None,
        **({"compiled": backend} if (backend := _backend(context)) else {}),  # which rounds elsewhere
        "albumentations": albumentations.__version__,
        **decoders(),
    }


def _stores(context: RunContext, of_study: bool) -> bool:
    """Whether answers are written: always on a CPU, where a teacher costs more than a disk (docs/cache.md)."""
    if context.settings.teacher.cache != "auto":
        return False
    return of_study or context.views is not None or context.precision.device.type == "cpu"


def _cache(context: RunContext, file: Path, facts: dict[str, Any], split: str, answer: tuple[int | None, Record],
           stores: bool) -> LogitCache:  # fmt: skip
    """The cache of the logits (stage None), or of a stage's features, which have a folder of their own; described."""
    teacher, data, (stage, (shape, dtype)) = context.settings.teacher, context.data, answer
    if stage is not None:
        facts = {**facts, "features of stage": stage}
    elif teacher.stored != "exact":
        facts = {**facts, "stored": teacher.stored}
    cache = LogitCache(
        cache_folder(context) / "teacher" / cache_key(facts),
        data.unlabelled_size() if split == UNLABELLED else data.size(split),
        shape,
        writable=stores,
        budget=teacher.cache_gb * GB,
        dtype=dtype,
    )
    if context.world.is_main and cache.writable:
        describe(cache.folder, {"teacher": str(file), **facts}, "teacher.cache")
    return cache


def _report_room(caches: Mapping[str, Sequence[LogitCache]], views: Sequence[int]) -> None:
    """Print how many views fit into the cache, if not all do; those of labelled samples are counted first."""
    taken, whose = 0, ("a view", "a view of the pictures without masks")
    for of_split, count, what in zip(caches.values(), views, whose, strict=False):
        for cache, name in zip(of_split, ("logits", *["features"] * (len(of_split) - 1)), strict=True):
            fit, each = cache.fit(count, taken), cache.samples * cache.record_bytes
            taken += (fit - cache.stored(count)) * file_bytes(cache.samples, cache.record_bytes)
            if fit < count and cache.writable:
                console.say(
                    f"teacher  {name} of {what} take {each / GB:.2g} GB; {fit} of {count} views fit into "
                    "teacher.cache_gb, the rest is computed live (kd cache prune frees space, augment.views=<number> "
                    "and teacher.stored=int8 need less)"
                )
