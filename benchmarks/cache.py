"""The teacher's cache among the contestants: one who finds every answer in it, and one who finds none.

Answers are kept as a run keeps them, on the disk, and looked up batch by batch in the process that trains.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.case import Case, Remembered
from kd.data.batches.batch import Batch
from kd.data.batches.loading import TrainLoader
from kd.distillation.logit_cache import LogitCache
from kd.distillation.teacher import CachedTeacher
from kd.experiment.builders import build_train_loader
from kd.system.world import SOLO
from kd.training.loop import EpochResult

VIEWS = 2  # that the warm cache holds


class LookedUp:
    """Batches in memory, each with what the cache has of its answers; `new` counts views on, so that it has none."""

    def __init__(self, remembered: Remembered, answers: LogitCache, new: bool = False) -> None:
        self.remembered, self.answers, self.new, self.world = remembered, answers, new, SOLO

    def steps(self) -> int:
        return self.remembered.steps()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.remembered.epoch(epoch, start):
            view = epoch if self.new else batch.view
            stored = self.answers.read(view, batch.indices.tolist())
            yield replace(batch, view=view, answers=None if stored is None else (stored,))


def kept(case: Case) -> LogitCache:
    """The answers to VIEWS views of every sample, on the disk; those that are not there yet are computed."""
    answers = _answers(case, case.bench.settings.root / "answers")
    teacher, loader = CachedTeacher(case.live(), {"train": [answers]}), with_loader(case, answers)
    for view in range(VIEWS):
        for batch in loader.epoch(view):
            teacher(batch.to(case.bench.precision.device))
    teacher.flush()
    return answers


def with_loader(case: Case, answers: LogitCache) -> TrainLoader:
    """The loader of a run whose answers are kept, over VIEWS views."""
    settings = case.bench.settings
    augment = settings.augment.model_copy(update={"views": VIEWS})
    bench = replace(case.bench, settings=settings.model_copy(update={"augment": augment}))
    return build_train_loader(bench, settings.seed, {"train": [answers]})


def warm(case: Case, state: str, answers: LogitCache) -> Iterator[EpochResult]:
    """Steps, every answer of which is in the cache."""
    return case.fit(LookedUp(case.remembered, answers), CachedTeacher(case.live(), {"train": [answers]}), state)


def warm_epoch(case: Case, state: str, answers: LogitCache) -> Iterator[EpochResult]:
    """Whole epochs with their loader, every answer of which is in the cache."""
    return case.fit(with_loader(case, answers), CachedTeacher(case.live(), {"train": [answers]}), state)


def cold(case: Case, state: str, stack: ExitStack) -> Iterator[EpochResult]:
    """Steps, every answer of which is computed and stored; an epoch is over when all are on the disk."""
    answers = _answers(case, Path(stack.enter_context(TemporaryDirectory())))
    teacher = CachedTeacher(case.live(), {"train": [answers]})
    for result in case.fit(LookedUp(case.remembered, answers, new=True), teacher, state):
        teacher.flush()
        yield result


def bytes_per_image(case: Case, views: int) -> float:
    """Bytes that the answers to `views` views of one training image take on the disk."""
    with TemporaryDirectory() as place:
        answers = _answers(case, Path(place))
        teacher = CachedTeacher(case.live(), {"train": [answers]})
        batches = [batch.to(case.bench.precision.device) for batch in case.remembered.epoch(0)]
        for view in range(views):
            for batch in batches:
                teacher(replace(batch, view=view))
        teacher.flush()
        files = [path.stat() for path in Path(place).rglob("*.records")]
        return sum(512 * file.st_blocks for file in files) / answers.samples


def _answers(case: Case, folder: Path) -> LogitCache:
    data = case.bench.data
    return LogitCache(folder / "teacher" / "answers", data.size("train"), (data.classes, *data.image_size))
