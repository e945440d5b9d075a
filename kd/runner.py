"""One network trained to its end: what happens around `fit`, the same for a teacher and for a student.

Epoch by epoch: the run folder first (`kd.course`), then the display, then the mirror. The best epoch is chosen on
validation alone; its weights are on disk before the next epoch begins.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd import models
from kd.answers import Answers
from kd.console import Display, Watched
from kd.course import Course, best_of
from kd.data import Source
from kd.data.cache import Samples, kept
from kd.data.loading import EvalLoader, TrainLoader
from kd.data.views import Augmentation
from kd.evaluation import Evaluation, evaluate, latency_ms
from kd.files import write_json
from kd.losses import DistillationLoss
from kd.network import Network
from kd.precision import Precision, choose_device, compiled, hold_memory, repeat_bit_for_bit
from kd.run_folder import RunFolder
from kd.settings import Settings
from kd.steps import DivergedError
from kd.stopping import Stop
from kd.teacher import CachedTeacher, Teacher
from kd.timeline import Timeline
from kd.tracking import NullRun
from kd.training import EpochResult, Pause, Recipe, fit, measure_batch_norm


@dataclass(frozen=True)
class Bench:
    """What teacher and student share: the data and its views, the device, the batch."""

    settings: Settings
    transforms: Sequence[Any]
    precision: Precision
    workers: int
    stop: Stop = field(default_factory=Stop)
    loaders: dict[str, EvalLoader] = field(default_factory=dict)  # started once, kept for every epoch

    @classmethod
    def of(cls, settings: Settings, transforms: Sequence[Any], stop: Stop | None = None) -> "Bench":
        """What a run's settings ask for; `stop` is who hears that the run should end."""
        device = choose_device(settings.trainer.device)
        repeat_bit_for_bit(settings.trainer.deterministic)
        if device.type == "cpu":
            hold_memory()
        workers = settings.trainer.workers
        if workers == "auto":  # on a CPU the cores are busy training
            workers = min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
        precision = Precision(device, settings.trainer.precision, settings.trainer.channels_last)
        return cls(settings, transforms, precision, workers, stop or Stop())

    @property
    def data(self) -> Source:
        return self.settings.data

    @cached_property
    def samples(self) -> Samples:
        """The data, decoded once where there is room."""
        return kept(self.data, self.settings.root / "runs" / "cache" / "data")

    def train_loader(self, seed: int, answers: Answers | None = None) -> TrainLoader:
        augmentation = Augmentation(self.transforms, seed, self.data.ignore_index)
        return TrainLoader(
            self.samples, augmentation, self.settings.trainer.batch_size, seed, self.workers, self._pin, self.views,
            answers,
        )  # fmt: skip

    @property
    def views(self) -> int | None:
        """How many views of a sample there are; without augmentation they are all the same."""
        return self.settings.augment.views if self.transforms else 1

    def evaluate(
        self, network: Network, split: str, reference: Sequence[Tensor] | None = None, keep_labels: bool = False
    ) -> Evaluation:
        if split not in self.loaders:
            self.loaders[split] = EvalLoader(
                self.samples, split, self.settings.trainer.batch_size, self.workers, self._pin
            )
        return evaluate(network, self.loaders[split], self.precision, self.data.ignore_index, reference, keep_labels)

    @property
    def _pin(self) -> bool:
        return self.precision.device.type == "cuda"

    def recipe(self, seed: int) -> Recipe:
        optimizer, trainer = self.settings.optimizer, self.settings.trainer
        return Recipe(
            seed, optimizer.weight_decay, optimizer.betas, optimizer.clip_norm, trainer.accumulate,
            skip_nonfinite=trainer.nonfinite == "skip",
        )  # fmt: skip

    def build(self, who: str, seed: int) -> Network:
        """The student or the teacher of the backbone, its random parts drawn from `seed`, on the device."""
        torch.manual_seed(seed)
        network = models.build(
            getattr(self.settings.backbone, who), self.data.classes, self.data.class_names, f"backbone.{who}"
        )
        network = self.precision.place(network)
        return compiled(network) if self.settings.trainer.compile else network


@dataclass(frozen=True)
class Lesson:
    """One training: who learns, from whom, by which plan, with which loss.

    `reference` is the teacher's labels over the validation split, for the agreement with it; `label` is put before what
    is shown of the training, where several share a terminal.
    """

    who: str
    network: Network
    timeline: Timeline
    loss: DistillationLoss
    seed: int
    objective: str = "val/miou"
    teacher: Teacher | None = None
    reference: Sequence[Tensor] | None = None
    label: str = ""


#: Told the best objective so far, the epochs trained and the epochs planned; says whether that is enough.
Judge = Callable[[float | None, int, int], bool]


def train(
    lesson: Lesson, bench: Bench, folder: RunFolder, mirror: NullRun, judge: Judge = lambda *_: False
) -> dict[str, Any]:
    """Train a network to its end, or to where the judge stops it, and return the record of its best epoch.

    Writes metrics.jsonl, <who>.safetensors and checkpoints; goes on from a checkpoint that is there.

    Raises:
        DivergedError: a loss or a gradient is not finite; nonfinite.json has the details.
        Interrupted: somebody asked for it; the checkpoint has everything up to the last step.
        RunError: there are checkpoints, but none to go on from.
    """
    facts, minutes = {"image_size": list(bench.data.image_size)}, bench.settings.trainer.checkpoint_minutes
    course = Course(lesson.who, lesson.network, folder, lesson.objective, facts, minutes)
    answers = lesson.teacher.answers if isinstance(lesson.teacher, CachedTeacher) else None
    loader, epochs, enough = bench.train_loader(lesson.seed, answers), len(lesson.timeline), False
    if course.start is None and _enters_closed(lesson):
        measure_batch_norm(lesson.network, loader, bench.precision, lesson.seed)
    for past in range(len(course.records)):  # which the judge may not have heard of
        enough = judge(best_of(course.records[: past + 1], lesson.objective)[lesson.objective], past + 1, epochs)
    with (
        bench.stop.later(),
        Display(f"{lesson.label}{lesson.who}", epochs, loader.steps(), lesson.objective) as display,
    ):
        for item in () if enough else _epochs(lesson, bench, Watched(loader, display), course):
            if isinstance(item, EpochResult):
                record = course.over(item)
                display.epoch(record, course.best is record)
                mirror.refresh()
                if judge(course.best[lesson.objective], record["epoch"] + 1, epochs):
                    break
            else:
                course.save(item.snapshot())
            bench.stop.now()
    bench.stop.now()
    return course.best


def _enters_closed(lesson: Lesson) -> bool:
    """Whether encoder blocks of random weights are closed from the start."""
    return lesson.network.settings.weights is None and lesson.timeline[0].unfrozen_blocks < lesson.timeline.blocks


def _epochs(lesson: Lesson, bench: Bench, loader: Watched, course: Course) -> Iterator[EpochResult | Pause]:
    def validate() -> dict[str, float | None]:
        found = bench.evaluate(lesson.network, "val", lesson.reference)
        return found.metrics(lesson.network.class_names)

    try:
        yield from fit(
            lesson.network,
            lesson.teacher,
            lesson.loss,
            lesson.timeline,
            loader,
            validate,
            bench.recipe(lesson.seed),
            bench.precision,
            start=course.start,
            pause=lambda: bench.stop.asked or course.due(),
        )
    except DivergedError as error:
        names = [bench.data.name("train", index) for index in error.indices]
        where = {"epoch": error.epoch, "step": error.step, "samples": names}
        write_json(course.folder / "nonfinite.json", {**where, **error.values})
        error.add_samples(names)
        raise


def figures(network: Network, bench: Bench, file: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """What a network is and how good it is: size, speed, and its metrics on validation and (where there is one) test.

    Also returns its labels over the validation split.
    """
    evaluation = bench.evaluate(network, "val", keep_labels=True)
    result = {
        "parameters": network.count_parameters(),
        "file_bytes": file.stat().st_size,
        "latency_ms": latency_ms(network, bench.data.image_size, bench.precision),
        **{f"val/{name}": value for name, value in evaluation.metrics(network.class_names).items()},
    }
    if bench.data.size("test"):
        test = bench.evaluate(network, "test").metrics(network.class_names)
        result |= {f"test/{name}": value for name, value in test.items()}
    return result, evaluation.labels
