"""One distillation from settings to summary: the verb behind `train.py`.

A teacher is found or trained, a student is distilled from it, both are measured, and the run folder tells it all;
MLflow is given a copy. Where no term of the loss looks at a teacher, none is built.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd import tracking
from kd.config import resume
from kd.config.compose import public
from kd.config.transforms import build_transforms
from kd.data.source import spaced
from kd.distillation.teacher import CachedTeacher, Teacher
from kd.errors import RunError, UserError
from kd.experiment import evidence, teacher_training
from kd.experiment.context import RunContext
from kd.experiment.job import Job, discard
from kd.experiment.teacher_cache import MeasuredTeacher, answering
from kd.experiment.trainer import TrainingJob, figures, train
from kd.networks import saved
from kd.plan.timeline import Timeline
from kd.run import checkpoint, console, plots
from kd.run.folder import RunFolder, only_one
from kd.study.hydra_options import ticket
from kd.study.no_trial import NoTrial
from kd.system import signals
from kd.system.environment import environment
from kd.system.installation import train_command
from kd.system.world import World, joined

SAMPLES = 5  # in the picture of predictions, at even distances through the validation split

log = logging.getLogger(__name__)


def run(job: Job | None) -> float | tuple[float, ...] | None:
    """Do what a job asks for; returns its objective, or several in the order asked for.

    Of several processes the first is given the job, and the others do their part in its trainings.

    A job that fails on something a person did before its first epoch was over leaves no run folder behind. A job that
    is a trial of a study tells the study how it ended.
    """
    with signals.listen() as stop, joined() as world:
        asked = world.broadcast(job)
        if asked is None:
            raise ValueError("the first process was given no job")
        if world.is_main:
            return _run(asked, stop, world)
        _train_along(asked, stop, world)
        return None


def _run(job: Job, stop: signals.Stop, world: World) -> float | tuple[float, ...]:
    with only_one(job.folder):
        try:
            membership = ticket(job.trial)
            if membership is None:
                return _distil(job, NoTrial(), stop, world)
            from kd.study.trial import attach  # heavy: optuna

            with attach(membership, job.folder) as trial, world.telling():
                return _distil(job, trial, stop, world)
        except UserError:
            if job.fresh:
                discard(job.folder)
            raise
        except signals.Interrupted:
            if job.trial is None:
                console.say(f"go on    {train_command()} resume={job.folder}")
            raise


def _train_along(job: Job, stop: signals.Stop, world: World) -> None:
    """The part in a run of a process that is not the first: the first one's trainings, and nothing written or said."""
    context = RunContext.of(job.settings, build_transforms(job.settings.augment.transforms), stop, world)
    known = teacher_training.obtain(context) if job.settings.loss.needs_teacher else None
    training = _training(context, known)
    train(training, context, None, tracking.NullRun())
    _answered(training.teacher, world)
    world.leave()


def _answered(teacher: Teacher | None, world: World) -> dict[str, Any]:
    """What became of the teacher's answers, over all processes. A collective."""
    if not isinstance(teacher, CachedTeacher):
        return {}
    counts = world.gather(teacher.counts())
    return {"teacher_answers": {name: sum(each[name] for each in counts) for name in counts[0]}}


def _training(context: RunContext, known: MeasuredTeacher | None, label: str = "") -> TrainingJob:
    """The distillation that a run's settings ask for."""
    settings = context.settings
    student = context.build("student", settings.seed)
    return TrainingJob(
        who="student",
        network=student,
        timeline=settings.timeline(len(student.partition.blocks)),
        loss=context.loss(settings.loss.model_dump()),
        seed=settings.seed,
        objective=settings.objective[0],
        teacher=answering(context, known, settings.trainer.epochs) if known else None,
        reference=known.batches(settings.trainer.batch_size) if known else None,
        label=label,
    )


def _distil(job: Job, trial: NoTrial, stop: signals.Stop, world: World) -> float | tuple[float, ...]:
    settings, folder, config = job.settings, RunFolder(job.folder), public(job.config)
    if (folder / "summary.json").exists():
        raise RunError(f"{folder.path} holds a run that is over; give another hydra.run.dir, or leave it out")
    context = RunContext.of(settings, build_transforms(settings.augment.transforms), stop, world)
    if job.trial and trial.predecessor and inherit(trial.predecessor, folder.path, config):
        console.say(f"trial {job.trial.number} goes on from where {trial.predecessor} was cut off")
    folder.write_config(config)
    folder.write_overrides(job.overrides)
    started, earlier = time.perf_counter(), checkpoint.spent(folder.path)
    console.say(f"run      {folder.path}")
    known = teacher_training.obtain(context) if settings.loss.needs_teacher else None

    name, tags = settings.tracking.run_name or job.name, {**_tags(job), **trial.tags}
    goes_on = checkpoint.exists(folder.path)
    with tracking.run(settings.tracking, settings.root, folder, name, tags, job.choices, continued=goes_on) as mirror:
        folder.identify(environment=environment(context.precision.device, world.size))
        mirror.refresh()
        if job.trial:  # a run of its own does not wait for the store
            trial.note({"mlflow_run": mirror.run_id})
        training = _training(context, known, f"trial {job.trial.number} " if job.trial else "")
        if settings.pictures and not job.trial:  # a trial's pictures are worth drawing once it has come to its end
            plots.draw_timeline(training.timeline, folder / "timeline.png")
        best = train(training, context, folder, mirror, trial.report)
        answered = _answered(training.teacher, world)
        world.leave()
        context = context.alone()
        summary = {"best_epoch": best["epoch"], "epochs": len(folder.metrics())}
        if not trial.pruned:
            summary |= _finish(context, folder, best, known, training.timeline)
        summary |= answered
        summary |= {"state": "pruned" if trial.pruned else "complete", "planned_epochs": len(training.timeline)}
        summary["total_seconds"] = earlier + time.perf_counter() - started
        objectives = {name: _objective(name, best, summary.get("student", {})) for name in settings.objective}
        folder.write_summary({"objective": objectives, **summary})
        trial.note(_facts(summary))
        trial.finish(objectives)
        checkpoint.remove(folder.path)
    if settings.tracking.registered_name and not job.trial:
        from kd import deploy  # heavy: onnx

        deploy.register_or_warn(folder.path, settings.tracking.registered_name, settings.root)
    console.say(f"run      {folder.path}")
    values = tuple(objectives.values())
    return values[0] if len(values) == 1 else values


def _finish(
    context: RunContext, folder: RunFolder, best: Mapping[str, Any], teacher: MeasuredTeacher | None, timeline: Timeline
) -> dict[str, Any]:
    """Measure the best student as it was saved, draw the pictures, show the table."""
    file = folder / "student.safetensors"
    student = context.precision.place(saved.load_file(file))
    looks = evidence.looks(context, teacher)
    student_figures, batches = figures(student, context, file, looks)
    labels = torch.cat(batches)
    if student_figures["val/miou"] != best["val/miou"]:
        log.warning(
            "the saved student reaches val/miou %s, its epoch said %s", student_figures["val/miou"], best["val/miou"]
        )
    if context.settings.pictures:
        _draw(context, folder, best, teacher, timeline, labels)
    evidence.leave(context, folder, looks, labels, teacher)
    console.show(console.comparison(student_figures, teacher.figures if teacher else None))
    return {"student": student_figures, **({"teacher": teacher.figures} if teacher else {})}


def _draw(
    context: RunContext,
    folder: RunFolder,
    best: Mapping[str, Any],
    teacher: MeasuredTeacher | None,
    timeline: Timeline,
    labels: Tensor,
) -> None:
    if not (folder / "timeline.png").exists():
        plots.draw_timeline(timeline, folder / "timeline.png")
    reached = teacher.figures.get("val/miou") if teacher else None
    plots.draw_curves(folder.metrics(), best["epoch"], reached, folder / "curves.png")
    taught = teacher.labels if teacher else None
    samples = [evidence.sample(context, index, labels, taught) for index in spaced(len(labels), SAMPLES)]
    plots.draw_predictions(samples, context.data.class_names, context.data.ignore_index, folder / "predictions.png")


def _facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a study's table shows of a run beside its objective."""
    plain = {name: summary[name] for name in ("epochs", "planned_epochs", "best_epoch", "total_seconds")}
    student = {name: summary.get("student", {}).get(name) for name in ("val/miou", "test/miou", "latency_ms")}
    return plain | {name: value for name, value in student.items() if value is not None}


def _objective(name: str, best: Mapping[str, Any], student: Mapping[str, Any]) -> float:
    value = student[name.removeprefix("student/")] if name.startswith("student/") else best[name]
    return float("nan") if value is None else float(value)


def _tags(job: Job) -> dict[str, str]:
    """What a person filters and groups runs by in MLflow."""
    groups = {f"group.{name}": choice for name, choice in job.choices.items()}
    return {"role": "student", "run_folder": str(job.folder), **groups}


def inherit(before: Path, folder: Path, config: dict[str, Any]) -> bool:
    """Let a run go on from where another of the same configuration was cut off; whether there was anything to take."""
    if (
        checkpoint.exists(folder)
        or not checkpoint.exists(before)
        or resume.fixed(resume.saved_config(before)) != resume.fixed(config)
    ):
        return False
    shutil.copyfile(before / "metrics.jsonl", folder / "metrics.jsonl") if (before / "metrics.jsonl").exists() else None
    checkpoint.copy(before, folder)
    return True
