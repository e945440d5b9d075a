"""One network trained to its end: what happens around `fit`, the same for a teacher and for a student.

Epoch by epoch: the run folder first, then the display, then the mirror. The best epoch is chosen on validation alone;
its weights are on disk before the next epoch begins.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd import models
from kd.console import Display, Watched
from kd.data import Source
from kd.data.loading import EvalLoader, TrainLoader
from kd.data.views import Augmentation
from kd.evaluation import Evaluation, evaluate, latency_ms
from kd.losses import DistillationLoss
from kd.network import Network
from kd.precision import Precision, choose_device
from kd.run_folder import RunFolder
from kd.settings import Settings, more_is_better
from kd.teacher import Teacher
from kd.timeline import Timeline
from kd.tracking import NullRun
from kd.training import EpochResult, Recipe, fit, measure_batch_norm


@dataclass(frozen=True)
class Bench:
    """What teacher and student share: the data and its views, the device, the batch."""

    settings: Settings
    transforms: Sequence[Any]
    precision: Precision
    workers: int
    loaders: dict[str, EvalLoader] = field(default_factory=dict)  # started once, kept for every epoch

    @classmethod
    def of(cls, settings: Settings, transforms: Sequence[Any]) -> "Bench":
        device = choose_device(settings.trainer.device)
        workers = settings.trainer.workers
        if workers == "auto":  # on a CPU the cores are busy training
            workers = min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
        return cls(
            settings, transforms, Precision(device, settings.trainer.precision, settings.trainer.channels_last), workers
        )

    @property
    def data(self) -> Source:
        return self.settings.data

    def train_loader(self, seed: int) -> TrainLoader:
        augmentation = Augmentation(self.transforms, seed, self.data.ignore_index)
        return TrainLoader(self.data, augmentation, self.settings.trainer.batch_size, seed, self.workers, self._pin)

    def evaluate(
        self, network: Network, split: str, reference: Sequence[Tensor] | None = None, keep_labels: bool = False
    ) -> Evaluation:
        if split not in self.loaders:
            self.loaders[split] = EvalLoader(
                self.data, split, self.settings.trainer.batch_size, self.workers, self._pin
            )
        return evaluate(network, self.loaders[split], self.precision, self.data.ignore_index, reference, keep_labels)

    @property
    def _pin(self) -> bool:
        return self.precision.device.type == "cuda"

    def recipe(self, seed: int) -> Recipe:
        optimizer = self.settings.optimizer
        return Recipe(
            seed, optimizer.weight_decay, optimizer.betas, optimizer.clip_norm, self.settings.trainer.accumulate
        )

    def build(self, who: str, seed: int) -> Network:
        """The student or the teacher of the backbone, its random parts drawn from `seed`, on the device."""
        torch.manual_seed(seed)
        network = models.build(
            getattr(self.settings.backbone, who), self.data.classes, self.data.class_names, f"backbone.{who}"
        )
        return self.precision.place(network)


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

    Writes metrics.jsonl and <who>.safetensors.
    """
    folder.forget_metrics()
    loader = bench.train_loader(lesson.seed)
    if lesson.network.settings.weights is None and lesson.timeline[0].unfrozen_blocks < lesson.timeline.blocks:
        measure_batch_norm(lesson.network, loader, bench.precision, lesson.seed)
    best: dict[str, Any] | None = None
    with Display(f"{lesson.label}{lesson.who}", len(lesson.timeline), loader.steps(), lesson.objective) as display:
        for result in _epochs(lesson, bench, Watched(loader, display)):
            record = result.metrics()
            if best is None or _improves(record, best, lesson.objective):
                best = record
                models.save(
                    lesson.network,
                    folder / f"{lesson.who}.safetensors",
                    epoch=record["epoch"],
                    image_size=list(bench.data.image_size),
                )
            folder.append_metrics(record)
            display.epoch(record, best is record)
            mirror.epoch({name: value for name, value in record.items() if name != "epoch"}, step=record["epoch"])
            if judge(best[lesson.objective], record["epoch"] + 1, len(lesson.timeline)):
                break
    return best


def _epochs(lesson: Lesson, bench: Bench, loader: Watched) -> Iterator[EpochResult]:
    def validate() -> dict[str, float | None]:
        found = bench.evaluate(lesson.network, "val", lesson.reference)
        return found.metrics(lesson.network.class_names)

    return fit(
        lesson.network,
        lesson.teacher,
        lesson.loss,
        lesson.timeline,
        loader,
        validate,
        bench.recipe(lesson.seed),
        bench.precision,
    )


def _improves(record: dict[str, Any], best: dict[str, Any], objective: str) -> bool:
    new, old = record[objective], best[objective]
    if _is_missing(new) or _is_missing(old):
        return _is_missing(old) and not _is_missing(new)
    return new > old if more_is_better(objective) else new < old


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


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
