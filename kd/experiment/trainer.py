"""One network trained to its end: what happens around `fit`, the same for a teacher and for a student.

Epoch by epoch: the run folder first (`kd.journal`), then the display, then the mirror. The best epoch is chosen on
validation alone; its weights are on disk before the next epoch begins.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import CachedTeacher, Teacher
from kd.errors import DivergedError
from kd.experiment.context import RunContext
from kd.networks.cost import latency_ms, macs
from kd.networks.network import Network, Segmenter
from kd.plan.timeline import Timeline
from kd.run.console import Display, Watched
from kd.run.folder import RunFolder
from kd.run.journal import Journal, Onlooker, best_of
from kd.system.files import write_json
from kd.tracking import NullRun
from kd.training.diagnostics import CloseLook
from kd.training.loop import EpochResult, Pause, fit, measure_batch_norm
from kd.training.snapshot import Snapshot


@dataclass(frozen=True)
class TrainingJob:
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


@overload
def train(
    training: TrainingJob, context: RunContext, folder: RunFolder, mirror: NullRun, judge: Judge = ...
) -> dict[str, Any]: ...


@overload
def train(training: TrainingJob, context: RunContext, folder: None, mirror: NullRun) -> None: ...


def train(
    training: TrainingJob,
    context: RunContext,
    folder: RunFolder | None,
    mirror: NullRun,
    judge: Judge = lambda *_: False,
) -> dict[str, Any] | None:
    """Train a network to its end, or to where the judge stops it, and return the record of its best epoch.

    Writes metrics.jsonl, <who>.safetensors and checkpoints; goes on from a checkpoint that is there. Of several
    processes the first does, and decides; the others call this without a folder, train along, and are given no record.

    Raises:
        DivergedError: a loss or a gradient is not finite; nonfinite.json has the details.
        Interrupted: somebody asked for it; the checkpoint has everything up to the last step.
        RunError: there are checkpoints, but none to go on from.
    """
    facts, minutes = {"image_size": list(context.data.image_size)}, context.settings.trainer.checkpoint_minutes
    world = context.world
    journal: Journal | Onlooker = Onlooker()
    if folder is not None:
        journal = Journal(training.who, training.network, folder, training.objective, facts, minutes)
    start = world.broadcast(journal.start)
    answers = training.teacher.answers if isinstance(training.teacher, CachedTeacher) else None
    loader, epochs, enough = context.train_loader(training.seed, answers), len(training.timeline), False
    if start is None and _starts_frozen(training):
        measure_batch_norm(training.network, loader, context.precision, training.seed, world=world)
    for past in range(len(journal.records)):  # which the judge may not have heard of
        enough = judge(
            (best_of(journal.records[: past + 1], training.objective) or {}).get(training.objective), past + 1, epochs
        )

    def pause() -> bool:
        return world.any(context.stop.asked or journal.due())

    with (
        context.stop.later(),
        Display(f"{training.label}{training.who}", epochs, loader.steps(), training.objective) as display,
    ):
        epochs_left = _epochs(training, context, Watched(loader, display), folder, pause, start)
        for item in () if world.broadcast(enough) else epochs_left:
            if isinstance(journal, Journal) and isinstance(item, EpochResult):
                record = journal.over(item)
                display.epoch(record, journal.best is record and training.objective in record)
                mirror.refresh()
                enough = judge((journal.best or record).get(training.objective), record["epoch"] + 1, epochs)
            elif isinstance(journal, Journal):
                journal.save(item.snapshot())
            if world.broadcast(enough):
                break
            context.stop.now(world.highest)
    context.stop.now(world.highest)
    return journal.best


def _starts_frozen(training: TrainingJob) -> bool:
    """Whether encoder blocks of random weights are closed from the start."""
    return training.network.settings.weights is None and training.timeline[0].unfrozen_blocks < training.timeline.blocks


def _epochs(training: TrainingJob, context: RunContext, loader: Watched, folder: RunFolder | None,
            pause: Callable[[], bool], start: Snapshot | None) -> Iterator[EpochResult | Pause]:  # fmt: skip
    def validate() -> dict[str, float | None]:
        found = context.evaluate(training.network, "val", training.reference)
        return found.metrics(training.network.class_names)

    try:
        yield from fit(
            training.network,
            training.teacher,
            training.loss,
            training.timeline,
            loader,
            validate,
            context.recipe(training.seed),
            context.precision,
            start=start,
            pause=pause,
            world=context.world,
        )
    except DivergedError as error:
        indices = chain.from_iterable(context.world.gather(error.indices))  # it was raised in every process
        names = [context.data.name("train", index) for index in indices]
        where = {"epoch": error.epoch, "step": error.step, "samples": names}
        if folder is not None:
            write_json(folder / "nonfinite.json", {**where, **error.values})
        error.add_samples(names)
        raise


def figures(
    network: Segmenter, context: RunContext, file: Path, looks: Mapping[str, CloseLook] | None = None
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a network is and how good it is: size, speed, and its metrics on validation and (where there is one) test.

    Also returns its labels over the validation split; `looks` are shown the predictions of their split. Several
    processes share the work; the first one takes the time.
    """
    looks = looks or {}
    world, evaluation = context.world, context.evaluate(network, "val", keep_labels=True, look=looks.get("val"))
    result = {
        "parameters": network.count_parameters(),
        "macs": macs(network, context.data.image_size),
        "file_bytes": file.stat().st_size,
        "latency_ms": world.broadcast(
            latency_ms(network, context.data.image_size, context.precision) if world.is_main else None
        ),
        **{f"val/{name}": value for name, value in evaluation.metrics(network.class_names).items()},
    }
    if context.data.size("test"):
        test = context.evaluate(network, "test", look=looks.get("test")).metrics(network.class_names)
        result |= {f"test/{name}": value for name, value in test.items()}
    return result, evaluation.labels
