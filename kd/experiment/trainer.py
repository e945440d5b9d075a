"""One network trained to its end: what happens around `fit`, the same for a teacher and for a student.

Epoch by epoch: the run folder first (`kd.course`), then the display, then the mirror. The best epoch is chosen on
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
from kd.experiment.context import Bench
from kd.networks.cost import latency_ms, macs
from kd.networks.network import Network, Segmenter
from kd.plan.timeline import Timeline
from kd.run.console import Display, Watched
from kd.run.folder import RunFolder
from kd.run.journal import Course, Onlooker, best_of
from kd.system.files import write_json
from kd.tracking import NullRun
from kd.training.diagnostics import CloseLook
from kd.training.loop import EpochResult, Pause, fit, measure_batch_norm
from kd.training.snapshot import Snapshot


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


@overload
def train(lesson: Lesson, bench: Bench, folder: RunFolder, mirror: NullRun, judge: Judge = ...) -> dict[str, Any]: ...


@overload
def train(lesson: Lesson, bench: Bench, folder: None, mirror: NullRun) -> None: ...


def train(
    lesson: Lesson, bench: Bench, folder: RunFolder | None, mirror: NullRun, judge: Judge = lambda *_: False
) -> dict[str, Any] | None:
    """Train a network to its end, or to where the judge stops it, and return the record of its best epoch.

    Writes metrics.jsonl, <who>.safetensors and checkpoints; goes on from a checkpoint that is there. Of several
    processes the first does, and decides; the others call this without a folder, train along, and are given no record.

    Raises:
        DivergedError: a loss or a gradient is not finite; nonfinite.json has the details.
        Interrupted: somebody asked for it; the checkpoint has everything up to the last step.
        RunError: there are checkpoints, but none to go on from.
    """
    facts, minutes = {"image_size": list(bench.data.image_size)}, bench.settings.trainer.checkpoint_minutes
    world = bench.world
    course: Course | Onlooker = Onlooker()
    if folder is not None:
        course = Course(lesson.who, lesson.network, folder, lesson.objective, facts, minutes)
    start = world.broadcast(course.start)
    answers = lesson.teacher.answers if isinstance(lesson.teacher, CachedTeacher) else None
    loader, epochs, enough = bench.train_loader(lesson.seed, answers), len(lesson.timeline), False
    if start is None and _enters_closed(lesson):
        measure_batch_norm(lesson.network, loader, bench.precision, lesson.seed, world=world)
    for past in range(len(course.records)):  # which the judge may not have heard of
        enough = judge(
            (best_of(course.records[: past + 1], lesson.objective) or {}).get(lesson.objective), past + 1, epochs
        )

    def pause() -> bool:
        return world.any(bench.stop.asked or course.due())

    with (
        bench.stop.later(),
        Display(f"{lesson.label}{lesson.who}", epochs, loader.steps(), lesson.objective) as display,
    ):
        epochs_left = _epochs(lesson, bench, Watched(loader, display), folder, pause, start)
        for item in () if world.broadcast(enough) else epochs_left:
            if isinstance(course, Course) and isinstance(item, EpochResult):
                record = course.over(item)
                display.epoch(record, course.best is record and lesson.objective in record)
                mirror.refresh()
                enough = judge((course.best or record).get(lesson.objective), record["epoch"] + 1, epochs)
            elif isinstance(course, Course):
                course.save(item.snapshot())
            if world.broadcast(enough):
                break
            bench.stop.now(world.highest)
    bench.stop.now(world.highest)
    return course.best


def _enters_closed(lesson: Lesson) -> bool:
    """Whether encoder blocks of random weights are closed from the start."""
    return lesson.network.settings.weights is None and lesson.timeline[0].unfrozen_blocks < lesson.timeline.blocks


def _epochs(lesson: Lesson, bench: Bench, loader: Watched, folder: RunFolder | None, pause: Callable[[], bool],
            start: Snapshot | None) -> Iterator[EpochResult | Pause]:  # fmt: skip
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
            start=start,
            pause=pause,
            world=bench.world,
        )
    except DivergedError as error:
        indices = chain.from_iterable(bench.world.gather(error.indices))  # it was raised in every process
        names = [bench.data.name("train", index) for index in indices]
        where = {"epoch": error.epoch, "step": error.step, "samples": names}
        if folder is not None:
            write_json(folder / "nonfinite.json", {**where, **error.values})
        error.add_samples(names)
        raise


def figures(
    network: Segmenter, bench: Bench, file: Path, looks: Mapping[str, CloseLook] | None = None
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a network is and how good it is: size, speed, and its metrics on validation and (where there is one) test.

    Also returns its labels over the validation split; `looks` are shown the predictions of their split. Several
    processes share the work; the first one takes the time.
    """
    looks = looks or {}
    world, evaluation = bench.world, bench.evaluate(network, "val", keep_labels=True, look=looks.get("val"))
    result = {
        "parameters": network.count_parameters(),
        "macs": macs(network, bench.data.image_size),
        "file_bytes": file.stat().st_size,
        "latency_ms": world.broadcast(
            latency_ms(network, bench.data.image_size, bench.precision) if world.is_main else None
        ),
        **{f"val/{name}": value for name, value in evaluation.metrics(network.class_names).items()},
    }
    if bench.data.size("test"):
        test = bench.evaluate(network, "test", look=looks.get("test")).metrics(network.class_names)
        result |= {f"test/{name}": value for name, value in test.items()}
    return result, evaluation.labels
