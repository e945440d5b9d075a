"""One distillation from settings to summary: what `train.py` runs.

A teacher is found or trained, a student is distilled from it, both are measured, and the run folder records everything;
MLflow gets a copy. No teacher is built if no term of the loss needs one.
"""

import shlex
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

from kd import tracking
from kd.config import resume
from kd.config.compose import public
from kd.config.transforms import build_transforms
from kd.distillation.teacher import CachedTeacher
from kd.errors import RunError, UserError
from kd.experiment import data_lines, earlier, teacher_training
from kd.experiment.builders import build_learner, build_loss, build_network, check_features
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.job import Job, discard
from kd.experiment.measured_teacher import MeasuredTeacher
from kd.experiment.outcome import measure_student, objective, study_facts
from kd.experiment.sample_cache import share_samples
from kd.experiment.teacher_cache import build_teacher
from kd.experiment.teacher_network import identity_key, teacher_network
from kd.experiment.trainer import TrainingJob, train
from kd.networks.network import Network
from kd.run import checkpoint, console, plots
from kd.run.folder import RunFolder, only_one
from kd.run.restoring import restore
from kd.settings.keys import recipe_digest
from kd.study.attributes import INHERITED_EPOCHS, MLFLOW_RUN, RECIPE
from kd.study.hydra_options import ticket
from kd.study.no_trial import NoTrial
from kd.system import signals
from kd.system.environment import environment
from kd.system.installation import train_command
from kd.system.untrusted import mapping_at
from kd.system.world import World, joined
from kd.training.step import Distillation


@dataclass(frozen=True)
class _Run:
    """A job, where it runs, and what it runs with."""

    job: Job
    trial: NoTrial
    folder: RunFolder
    evaluator: Evaluator
    student: Network
    teacher: MeasuredTeacher | None

    @property
    def context(self) -> RunContext:
        return self.evaluator.context

    @property
    def inputs(self) -> dict[str, str | None]:
        """Digests of the files that the run depends on besides the data with masks, by what they are."""
        weights = teacher_training.weights_digest(self.job.settings.backbone.student.weights)
        teacher = identity_key(self.context, self.teacher.file) if self.teacher else None
        used = self.context.settings.unlabelled_per_batch > 0
        return {
            "the teacher's weights": teacher,
            "the weights of the student's encoder": weights,
            "the pictures without masks": self.context.data.unlabelled_fingerprint() if used else None,
        }


def run(job: Job | None) -> float | tuple[float, ...] | None:
    """Do a job; returns its objective, or several in the order asked for.

    Of several processes, the first one is given the job, and the others join its trainings; they return None. A job
    that fails on a user error before its first epoch is complete leaves no run folder behind. A trial of a study
    reports its outcome to the study.
    """
    with signals.listen() as stop, joined() as world:
        if job is not None and world.size > 1:
            job.settings.data.fingerprint()  # travels with it: no other process reads the files for it
        shared = world.broadcast(job)
        if shared is None:
            raise ValueError("the first process was given no job")
        if world.is_main:
            return _lead(shared, stop, world)
        _join(shared, stop, world)
        return None


def _lead(job: Job, stop: signals.Stop, world: World) -> float | tuple[float, ...]:
    """The first process's part: everything."""
    with only_one(job.folder):
        try:
            membership = ticket(job.trial)
            if membership is None:
                return _distil(job, NoTrial(), stop, world)
            from kd.study.trial import attach  # heavy: optuna

            with attach(membership, job.folder) as trial, world.reporting_errors():
                return _distil(job, trial, stop, world)
        except UserError:
            if job.fresh:
                discard(job.folder)
            raise
        except signals.Interrupted:
            if job.trial is None:
                store = [typed for typed in job.overrides if typed.startswith("tracking.uri=") and "***" not in typed]
                console.say(f"resume   {train_command()} {shlex.join([f'resume={job.folder}', *store])}")
            raise


def _join(job: Job, stop: signals.Stop, world: World) -> None:
    """Another process's part: the same trainings, if there are any, without writing or printing anything."""
    if world.broadcast(None):
        return
    evaluator = Evaluator(RunContext.of(job.settings, build_transforms(job.settings.augment.transforms), stop, world))
    student = build_network(evaluator.context, "student", job.settings.seed)
    check_features(evaluator.context, student)
    share_samples(evaluator.context)
    teacher = teacher_training.obtain(evaluator) if job.settings.loss.needs_teacher else None
    training_job = _training_job(evaluator.context, student, teacher, job.trial is not None)
    train(training_job, evaluator, None, tracking.NullRun())
    _logit_counts(training_job, world)
    world.leave()


def _distil(job: Job, trial: NoTrial, stop: signals.Stop, world: World) -> float | tuple[float, ...]:
    """Run a job from an empty or interrupted folder to its summary."""
    folder = RunFolder(job.folder)
    for line in restore(folder):
        console.say(f"warning  {line}")
    if world.broadcast(earlier.is_complete(folder)):
        return _make_up(job, folder)
    context = RunContext.of(job.settings, build_transforms(job.settings.augment.transforms), stop, world)
    _prepare(folder, job)
    console.say(f"run      {folder.path}", *data_lines.lines(job.settings), *data_lines.warnings(job.settings))
    console.say(*data_lines.balance_lines(job.settings, lambda: context.balance))
    began, evaluator = time.perf_counter(), Evaluator(context)
    student = build_network(context, "student", job.settings.seed)  # a missing file of weights ends the run now
    check_features(context, student)
    share_samples(context)
    teacher = teacher_training.obtain(evaluator) if job.settings.loss.needs_teacher else None
    current = _Run(job, trial, folder, evaluator, student, teacher)
    _take_over(current)
    started = began - checkpoint.spent(folder.path)
    with _tracked(current) as mirror:
        summary = _train_and_measure(current, mirror)
        summary["total_seconds"] = time.perf_counter() - started
        objectives = summary["objective"]
        folder.write_summary(summary)
        trial.note(study_facts(summary, context.data.class_names))
        trial.finish(objectives)
        checkpoint.remove(folder.path)
    _register(job)
    console.say(f"run      {folder.path}")
    if job.trial is None:
        pages = ["kd ui"] if job.settings.tracking.enabled else []
        console.say_next(shlex.join(["kd", "report", str(folder.path)]), *pages)
    return _returned(objectives)


def _make_up(job: Job, folder: RunFolder) -> float | tuple[float, ...]:
    """What is missing of a run that was interrupted after its summary: its delivery to MLflow, and tidying.

    Raises:
        RunError: nobody asked to resume it.
    """
    if not job.resumed:
        raise RunError(f"{folder.path} holds a complete run; choose another hydra.run.dir, or leave it out")
    settings = job.settings
    with tracking.run(settings.tracking, settings.root, folder, tracking.Labels(job.name, {}), continued=True):
        checkpoint.remove(folder.path)
    _register(job)
    console.say(f"run      {folder.path}: it was finished; what was missing of its end is made up for")
    return _returned(mapping_at(folder.summary(), "objective"))


def _returned(objectives: Mapping[str, float]) -> float | tuple[float, ...]:
    values = tuple(objectives.values())
    return values[0] if len(values) == 1 else values


def _prepare(folder: RunFolder, job: Job) -> None:
    """Check that the data is what the run began with, and write the configuration."""
    resume.check_data(folder.path, job.settings.data.fingerprint())
    folder.write_config(public(job.config))
    folder.write_overrides(job.overrides)


def _take_over(current: _Run) -> None:
    """Check that an interrupted run's weights are what it began with; take over those of a trial's earlier attempt."""
    folder, trial, inputs = current.folder.path, current.trial, current.inputs
    resume.check_inputs(folder, inputs)
    before = trial.predecessor
    if current.job.trial is None or before is None or resume.changed_inputs(before, inputs):
        return
    if earlier.inherit(before, folder, public(current.job.config)):
        trial.note({INHERITED_EPOCHS: len(current.folder.metrics())})
        console.say(f"trial {current.job.trial.number} resumes where {before} was interrupted")


def _tracked(current: _Run) -> AbstractContextManager[tracking.NullRun]:
    """The run in MLflow, for as long as the block lasts."""
    settings, job, folder = current.job.settings, current.job, current.folder
    tags = {**_tags(job), **current.trial.tags}
    labels = tracking.Labels(settings.tracking.run_name or job.name, tags, job.choices)
    resumed = checkpoint.exists(folder.path)
    return tracking.run(settings.tracking, settings.root, folder, labels, continued=resumed)


def _train_and_measure(current: _Run, mirror: tracking.NullRun) -> dict[str, Any]:
    """Distil the student and, unless it was pruned, measure it; returns the summary."""
    job, trial, folder, context = current.job, current.trial, current.folder, current.context
    facts = environment(context.precision.device, context.world.size)
    earlier.say_other_environment(folder, facts)
    identity = {
        "data_fingerprint": context.data.fingerprint(),
        "inputs": current.inputs,
        "pictures": data_lines.counts(job.settings),
    }
    if job.config_dir and "config_dir" not in folder.identity():
        identity["config_dir"] = str(job.config_dir)
    folder.identify(environment=facts, **identity)
    mirror.refresh()
    if job.trial:  # any other run does not wait for the store
        trial.note({MLFLOW_RUN: mirror.run_id, RECIPE: recipe_digest(public(job.config))})
    label = f"trial {job.trial.number} " if job.trial else ""
    training_job = _training_job(context, current.student, current.teacher, job.trial is not None, label)
    timeline, measured = training_job.distillation.timeline, {}
    if job.settings.pictures and not job.trial:  # a trial's pictures are only drawn if it completes
        plots.draw_timeline(timeline, folder / "timeline.png")
    best = train(training_job, current.evaluator, folder, mirror, trial.report)
    logit_counts = _logit_counts(training_job, context.world)
    context.world.leave()
    if not trial.pruned:
        measured = measure_student(current.evaluator.solo(), folder, best, current.teacher, timeline)
    return {
        "objective": {name: objective(name, best, measured.get("student", {})) for name in job.settings.objective},
        "best_epoch": best["epoch"],
        "epochs": len(folder.metrics()),
        **measured,
        **logit_counts,
        "pictures": data_lines.counts(job.settings),
        **({"class_weights": context.balance.weights()} if job.settings.loss.class_weights == "auto" else {}),
        "state": "pruned" if trial.pruned else "complete",
        "planned_epochs": training_job.epochs,
    }


def _training_job(
    context: RunContext, student: Network, teacher: MeasuredTeacher | None, of_study: bool, label: str = ""
) -> TrainingJob:
    """The distillation that a run's settings ask for."""
    settings, learner = context.settings, None
    if teacher and settings.loss.stages:
        learner = build_learner(context, student, cast(Network, teacher_network(context, teacher.file)))
    return TrainingJob(
        who="student",
        distillation=Distillation(
            student,
            build_loss(context, settings.loss.model_dump()),
            settings.timeline(len(student.partition.blocks)),
            build_teacher(context, teacher.file, settings.trainer.epochs, of_study) if teacher else None,
            learner,
        ),
        seed=settings.seed,
        objective=settings.objective[0],
        reference=teacher.batches(context.evaluated_together) if teacher else None,
        label=label,
    )


def _logit_counts(training_job: TrainingJob, world: World) -> dict[str, Any]:
    """How many of the teacher's logits were read, computed and stored, over all processes. A collective."""
    teacher = training_job.distillation.teacher
    if not isinstance(teacher, CachedTeacher):
        return {}
    counts = world.gather(teacher.counts())
    return {"teacher_answers": {name: sum(each[name] for each in counts) for name in counts[0]}}


def _tags(job: Job) -> dict[str, str]:
    """Tags to filter and group runs by in MLflow."""
    groups = {f"group.{name}": choice for name, choice in job.choices.items() if choice not in ("None", "null")}
    return {"role": "student", "run_folder": str(job.folder), **groups}


def _register(job: Job) -> None:
    """Register the student in MLflow, if asked to; a trial's student is not."""
    wanted, root = job.settings.tracking, job.settings.root
    if wanted.registered_name and not job.trial:
        from kd import deploy  # heavy: onnx

        deploy.register_or_warn(job.folder, wanted.registered_name, root, wanted.uri)
