"""Trains one network to its end: what happens around `fit`, for teachers and students alike.

After each epoch the run folder is written first (`kd.run.journal`), then the display, then the MLflow mirror. The best
epoch is chosen on validation alone; its weights are on disk before the next epoch begins.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

from torch import Tensor

from kd.data.batches.loading import TrainLoader
from kd.distillation.teacher import CachedTeacher
from kd.errors import DiskError, DivergedError
from kd.experiment.builders import build_options, build_train_loader
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.networks.network import Network
from kd.run.console import Display, ProgressLoader
from kd.run.folder import RunFolder
from kd.run.journal import Journal, NullJournal, best_of
from kd.system.files import write_json
from kd.tracking import NullRun
from kd.training.batch_norm import measure_batch_norm
from kd.training.loop import EpochResult, Pause, fit
from kd.training.snapshot import Snapshot
from kd.training.step import Distillation


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    Attributes:
        who: student or teacher.
        objective: the metric that the best epoch is chosen by.
        reference: the teacher's labels over the validation split, batch by batch, to measure agreement with.
        label: prefix of console lines, for trainings that share a terminal.
        weight_decay: None: that of the settings' optimizer.
    """

    who: str
    distillation: Distillation
    seed: int
    objective: str = "val/miou"
    reference: Sequence[Tensor] | None = None
    label: str = ""
    weight_decay: float | None = None

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.distillation.student

    @property
    def epochs(self) -> int:
        return len(self.distillation.timeline)


#: Called with the best objective so far, the epochs trained and the epochs planned; returns whether to stop.
ShouldStop = Callable[[float | None, int, int], bool]


def _never(*_: Any) -> bool:
    return False


@overload
def train(
    job: TrainingJob, evaluator: Evaluator, folder: RunFolder, mirror: NullRun, should_stop: ShouldStop = ...
) -> dict[str, Any]: ...


@overload
def train(job: TrainingJob, evaluator: Evaluator, folder: None, mirror: NullRun) -> None: ...


def train(
    job: TrainingJob, evaluator: Evaluator, folder: RunFolder | None, mirror: NullRun, should_stop: ShouldStop = _never
) -> dict[str, Any] | None:
    """Train a network to its end, or until `should_stop`; returns the record of the best epoch.

    Writes metrics.jsonl, <who>.safetensors and checkpoints; resumes from a checkpoint in the folder. With several
    processes, the first one writes and decides; the others call this without a folder, and get None.

    Raises:
        DivergedError: a loss or a gradient is not finite; nonfinite.json has the details.
        Interrupted: a signal asked the run to end; the checkpoint includes the last step.
        RunError: there are checkpoints, but none that can be read.
    """
    context = evaluator.context
    stop, world, journal = context.stop, context.world, _journal(job, context, folder)
    start = world.broadcast(journal.start)
    loader = _loader(job, context)
    if start is None and _starts_frozen(job):
        measure_batch_norm(job.network, loader, context.precision, job.seed)
    ended = _ended_before(journal.records, job, should_stop)
    with stop.later(), _display(job, loader) as display, _nonfinite_written(context, folder):
        epochs = _fit(
            job, evaluator, ProgressLoader(loader, display), start, lambda: world.any(stop.asked or journal.due())
        )
        for item in () if world.broadcast(ended) else epochs:
            if isinstance(journal, Journal) and isinstance(item, EpochResult):
                record = journal.add(item)
                display.epoch(record, journal.best is record and job.objective in record)
                mirror.refresh()
                ended = should_stop((journal.best or record).get(job.objective), record["epoch"] + 1, job.epochs)
            elif isinstance(journal, Journal):
                journal.save(item.snapshot())
            if world.broadcast(ended):
                break
            stop.now(world.highest)
    stop.now(world.highest)
    return journal.best


def _journal(job: TrainingJob, context: RunContext, folder: RunFolder | None) -> Journal | NullJournal:
    if folder is None:
        return NullJournal()
    facts = {"image_size": list(context.data.image_size), **context.data.sizing.facts()}
    minutes, trained = context.settings.trainer.checkpoint_minutes, job.distillation.trained
    return Journal(job.who, job.network, folder, job.objective, facts, minutes, trained)


def _loader(job: TrainingJob, context: RunContext) -> TrainLoader:
    teacher = job.distillation.teacher
    stored = teacher.caches if isinstance(teacher, CachedTeacher) else None
    return build_train_loader(context, job.seed, stored, unlabelled=teacher is not None)


def _display(job: TrainingJob, loader: TrainLoader) -> Display:
    return Display(f"{job.label}{job.who}", job.epochs, loader.steps(), job.objective, job.network.class_names)


def _starts_frozen(job: TrainingJob) -> bool:
    """Whether encoder blocks of random weights are frozen from the start."""
    timeline = job.distillation.timeline
    return job.network.settings.weights is None and timeline[0].unfrozen_blocks < timeline.blocks


def _ended_before(records: Sequence[dict[str, Any]], job: TrainingJob, should_stop: ShouldStop) -> bool:
    """Call `should_stop` for the epochs of a resumed training, in case it missed them; returns its last answer."""
    ended = False
    for trained in range(1, len(records) + 1):
        best = best_of(records[:trained], job.objective) or {}
        ended = should_stop(best.get(job.objective), trained, job.epochs)
    return ended


def _fit(
    job: TrainingJob, evaluator: Evaluator, loader: ProgressLoader, start: Snapshot | None, pause: Callable[[], bool]
) -> Iterator[EpochResult | Pause]:
    context = evaluator.context

    def validate() -> dict[str, float | None]:
        loader.loader.prepare_next(job.epochs)
        return evaluator.evaluate(job.network, "val", job.reference).metrics(job.network.class_names)

    options = build_options(context, job.seed, job.weight_decay, job.objective if job.who == "student" else None)
    return fit(job.distillation, loader, validate, options, context.precision, start, pause)


@contextmanager
def _nonfinite_written(context: RunContext, folder: RunFolder | None) -> Iterator[None]:
    """Write nonfinite.json and name the samples when a training diverges, which it does in all processes at once."""
    try:
        yield
    except DivergedError as error:
        samples = chain.from_iterable(context.world.gather(error.samples))
        names = [context.data.name(split, index) for split, index in samples]
        if folder is not None:
            where = {"epoch": error.epoch, "step": error.step, "samples": names}
            with suppress(DiskError):  # a full disk must not hide that it diverged
                write_json(folder / "nonfinite.json", {**where, **error.values})
        error.add_samples(names)
        raise
