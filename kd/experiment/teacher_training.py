"""Where a run's teacher comes from: a file, or a training of its own, stored under its fingerprint.

The fingerprint covers everything that a teacher depends on (network, data, augmentation, optimiser, length, seed), so
the next run with the same teacher settings reuses it, and a run with others never does. A teacher sees a new view of a
sample in every epoch: `augment.views` is for the student. A lock makes runs that start together train it once.
"""

from dataclasses import replace
from pathlib import Path

from kd import tracking
from kd.distillation.foreign import files
from kd.experiment.builders import build_loss, build_network
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.measured_teacher import MeasuredTeacher, measured_teacher
from kd.experiment.trainer import TrainingJob, train
from kd.networks.spec import find_weights, is_file
from kd.plan.timeline import Timeline, in_epochs
from kd.plan.unfreeze import All
from kd.run import checkpoint, console, plots
from kd.run.folder import RunFolder, only_one
from kd.run.restoring import restore
from kd.settings import ForeignTeacher, Settings, TeacherFile
from kd.system.files import digest, json_digest
from kd.system.places import TEACHERS
from kd.training.step import Distillation

FORMAT = 1  # increase when the same settings train another teacher


def fingerprint(settings: Settings) -> str:
    """A hash of everything that an automatic teacher depends on."""
    trainer = settings.trainer
    facts = {
        "format": FORMAT,
        "network": settings.backbone.teacher.model_dump(),
        "weights": weights_digest(settings.backbone.teacher.weights),
        "data": settings.data.fingerprint(),
        **settings.data.view_facts(),
        **settings.data.measuring_facts(),
        "augment": settings.augment.transforms,
        "teacher": settings.trained_teacher.training,
        "optimizer": settings.optimizer.teachers_part,
        "trainer": trainer.model_dump(include={"batch_size", "accumulate", "precision"}),
        **({"compile": True} if trainer.compile else {}),
        **({"oversample": trainer.oversample} if trainer.oversample else {}),
        **({} if trainer.validate_every == 1 else {"validate_every": trainer.validate_every}),
    }
    return json_digest(facts)[:16]


def weights_digest(weights: str | None) -> str | None:
    """A digest of an encoder's weight file; None if its weights are random or given by name."""
    return None if weights is None or not is_file(Path(weights)) else digest(Path(weights))


def obtain(evaluator: Evaluator) -> MeasuredTeacher:
    """The run's teacher: found, or trained first, and measured.

    Raises:
        ModelError: its file is missing or damaged, or has other classes.
        ConfigError: a foreign teacher's channels are not the data's classes, and no class_map is given.
    """
    settings = evaluator.context.settings
    if isinstance(settings.teacher, TeacherFile):
        file = find_weights(Path(settings.teacher.path), "teacher.path")
    elif isinstance(settings.teacher, ForeignTeacher):
        file = files.find(settings.teacher)
    else:
        file = _trained(evaluator)
    return measured_teacher(evaluator, file)


def _trained(evaluator: Evaluator) -> Path:
    """The file of the automatic teacher, which all processes train together unless it is there."""
    evaluator = Evaluator(evaluator.context.with_new_views())
    context, world = evaluator.context, evaluator.context.world
    path = context.settings.root / TEACHERS / fingerprint(context.settings)
    if world.is_main:
        folder = RunFolder(path)
        waiting = f"teacher  another process is training it; waiting: {path}"
        with only_one(path, on_wait=lambda: console.say(waiting)):
            _ensure_trained(evaluator, folder)
    elif world.broadcast(None):
        train(_training_job(context), evaluator, None, tracking.NullRun())
    world.broadcast(None)  # its files are complete now
    return path / "teacher.safetensors"


def _ensure_trained(evaluator: Evaluator, folder: RunFolder) -> None:
    """Train the teacher unless its folder is complete; tells the other processes whether they are needed."""
    context, trained = evaluator.context, (folder / "summary.json").exists()
    context.world.broadcast(not trained)
    if trained:
        _tidy(context.settings, folder)
        console.say(f"teacher  {context.settings.backbone.teacher.encoder}, trained before: {folder.path}")
    else:
        _train(evaluator, folder)


def _tidy(settings: Settings, folder: RunFolder) -> None:
    """Make up for what a kill between a teacher's summary and its end left out: its end in MLflow, and tidying."""
    if checkpoint.exists(folder.path):
        with tracking.run(settings.tracking, settings.root, folder, _labels(settings, folder), continued=True):
            checkpoint.remove(folder.path)


def _labels(settings: Settings, folder: RunFolder) -> tracking.Labels:
    parameters = {"encoder": settings.backbone.teacher.encoder, **settings.trained_teacher.training}
    tags = {"role": "teacher", "teacher": folder.path.name}
    return tracking.Labels(
        f"teacher {settings.backbone.teacher.encoder}, {folder.path.name}", tags, parameters=parameters
    )


def _training_job(context: RunContext) -> TrainingJob:
    """A supervised training, with all blocks unfrozen from the first epoch."""
    settings, teacher = context.settings, context.settings.trained_teacher
    network = build_network(context, "teacher", teacher.seed)
    rates = replace(
        settings.optimizer.rates, lr=teacher.lr, min_lr=min(settings.optimizer.min_lr, teacher.lr),
        encoder_lr_scale=teacher.encoder_lr_scale, depth_decay=1.0,
    )  # fmt: skip
    timeline = Timeline(None, All(), rates, teacher.epochs, len(network.partition.blocks))
    loss = build_loss(context, {"gamma": teacher.gamma, "delta": teacher.delta})
    distillation = Distillation(network, loss, timeline)
    return TrainingJob("teacher", distillation, teacher.seed, weight_decay=teacher.weight_decay)


def _train(evaluator: Evaluator, folder: RunFolder) -> None:
    """Train the teacher; summary.json is written last and marks the folder as complete."""
    context, settings = evaluator.context, evaluator.context.settings
    teacher, encoder, file = settings.trained_teacher, settings.backbone.teacher.encoder, folder / "teacher.safetensors"
    console.say(f"teacher  {encoder}, trained first, for {in_epochs(teacher.epochs)}: {folder.path}")
    for line in restore(folder):
        console.say(f"warning  {line}")
    resumed = checkpoint.exists(folder.path)
    with tracking.run(settings.tracking, settings.root, folder, _labels(settings, folder), continued=resumed) as mirror:
        best = train(_training_job(context), evaluator, folder, mirror)
        if settings.pictures:
            names, weights = context.data.class_names, {"ce": teacher.gamma, "dice": teacher.delta}
            plots.draw_curves(folder.metrics(), best["epoch"], names, {}, folder / "curves.png", weights)
        metrics = measured_teacher(Evaluator(context.solo()), file).metrics
        folder.write_summary({"best_epoch": best["epoch"], "epochs": teacher.epochs, "teacher": metrics})
    checkpoint.remove(folder.path)
