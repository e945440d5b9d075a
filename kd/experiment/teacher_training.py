"""Where a teacher comes from: a file (ours, or a foreign one), or a training of its own, kept under a fingerprint.

The fingerprint covers everything that made the teacher (network, data, views, optimiser, length, seed), so that the
next run with the same teacher settings starts at once, and no run is ever given another's. A lock lets processes that
start together train it once.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kd import tracking
from kd.distillation.foreign import files
from kd.experiment.context import RunContext
from kd.experiment.teacher_cache import MeasuredTeacher, known
from kd.experiment.trainer import TrainingJob, train
from kd.networks.spec import find_weights, is_file
from kd.plan.schedules import Constant
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import All
from kd.run import checkpoint, console, plots
from kd.run.folder import RunFolder
from kd.settings import ForeignTeacher, Settings, TeacherFile
from kd.system.files import digest

FORMAT = 1  # raise it when the same settings would train another teacher


def fingerprint(settings: Settings) -> str:
    """A hash of everything that makes an automatic teacher what it is."""
    optimizer, trainer = settings.optimizer, settings.trainer
    made_of = {
        "format": FORMAT,
        "network": settings.backbone.teacher.model_dump(),
        "weights": _content(settings.backbone.teacher.weights),
        "data": settings.data.fingerprint(),
        "augment": settings.augment.transforms,
        **({} if settings.augment.views is None else {"views": settings.augment.views}),
        "teacher": settings.trained_teacher.lesson,
        "optimizer": optimizer.model_dump(exclude={"lr", "encoder_lr_scale", "depth_decay"}),
        "trainer": trainer.model_dump(include={"batch_size", "accumulate", "precision"}),
        **({"compile": True} if trainer.compile else {}),
        **({} if trainer.validate_every == 1 else {"validate_every": trainer.validate_every}),
    }
    return hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=8).hexdigest()


def _content(weights: str | None) -> str | None:
    """A digest of a file of encoder weights; None where weights are random or named."""
    return None if weights is None or not is_file(Path(weights)) else digest(Path(weights))


def obtain(context: RunContext) -> MeasuredTeacher:
    """The teacher of a run.

    Raises:
        ModelError: a file that is not there, is damaged, or holds other classes.
        ConfigError: the channels of a foreign teacher are not the data's classes, and nothing says which are.
    """
    settings = context.settings
    if isinstance(settings.teacher, TeacherFile):
        file = find_weights(Path(settings.teacher.path), "teacher.path")
    elif isinstance(settings.teacher, ForeignTeacher):
        file = files.find(settings.teacher)
    else:
        path = settings.root / "runs" / "teachers" / fingerprint(settings)
        file = path / "teacher.safetensors"
        if context.world.is_main:
            folder = RunFolder(path)
            with _alone(folder):
                _have_trained(context, folder)
        elif context.world.broadcast(None):
            train(_training(context), context, None, tracking.NullRun())
        context.world.broadcast(None)  # its files are there now
    return known(context, file)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold a teacher's folder; whoever else wants it waits, and is told for what."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.say(f"teacher  another process is training it; waiting: {folder.path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _have_trained(context: RunContext, folder: RunFolder) -> None:
    """See to it that a folder holds its teacher; the other processes are told whether they are needed."""
    trained = (folder / "summary.json").exists()
    context.world.broadcast(not trained)
    if trained:
        console.say(f"teacher  {context.settings.backbone.teacher.encoder}, trained before: {folder.path}")
    else:
        _train(context, folder)


def _training(context: RunContext) -> TrainingJob:
    """A supervised training, all blocks open from the first epoch."""
    settings, teacher = context.settings, context.settings.trained_teacher
    network = context.build("teacher", teacher.seed)
    rates = LearningRates(teacher.lr, min(settings.optimizer.min_lr, teacher.lr), teacher.encoder_lr_scale)
    timeline = Timeline(Constant(1.0), All(), rates, teacher.epochs, len(network.partition.blocks))
    weights = {"alpha": 0, "beta": 0, "gamma": teacher.gamma, "delta": teacher.delta}
    return TrainingJob("teacher", network, timeline, context.loss(weights), teacher.seed)


def _train(context: RunContext, folder: RunFolder) -> None:
    """Train the teacher; summary.json, written last, completes its folder."""
    settings, teacher = context.settings, context.settings.trained_teacher
    encoder, file = settings.backbone.teacher.encoder, folder / "teacher.safetensors"
    console.say(f"teacher  {encoder}, trained first, for {teacher.epochs} epochs: {folder.path}")
    tags = {"role": "teacher", "teacher": folder.path.name}
    name, parameters = f"teacher {folder.path.name}", {"encoder": encoder, **teacher.lesson}
    goes_on = checkpoint.exists(folder.path)
    with tracking.run(
        settings.tracking, settings.root, folder, name, tags, parameters=parameters, continued=goes_on
    ) as mirror:
        best = train(_training(context), context, folder, mirror)
        if settings.pictures:
            plots.draw_curves(folder.metrics(), best["epoch"], None, folder / "curves.png")
        measured = known(context.alone(), file).figures
        folder.write_summary({"best_epoch": best["epoch"], "epochs": teacher.epochs, "teacher": measured})
    checkpoint.remove(folder.path)
