"""The outcome of a distillation: the best student measured, pictures and evidence written, the objective."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kd.data.source import spaced
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator, measure
from kd.experiment.evidence import sample, student_diagnostics, write_evidence
from kd.experiment.measured_teacher import MeasuredTeacher
from kd.networks import saved
from kd.plan.timeline import Timeline
from kd.run import console, plots
from kd.run.folder import RunFolder

SAMPLES = 5  # in predictions.png, evenly spaced over the validation split

log = logging.getLogger(__name__)


def measure_student(
    evaluator: Evaluator,
    folder: RunFolder,
    best: Mapping[str, Any],
    teacher: MeasuredTeacher | None,
    timeline: Timeline,
) -> dict[str, Any]:
    """Measure the best student from its file, draw the pictures, write the evidence, print the table.

    Returns the metrics of the student and, if there is one, of the teacher.
    """
    context, file = evaluator.context, folder / "student.safetensors"
    student = context.precision.place(saved.load_file(file))
    diagnostics = student_diagnostics(context, teacher)
    metrics, batches = measure(evaluator, student, file, diagnostics)
    labels = torch.cat(batches)
    if metrics["val/miou"] != best["val/miou"]:
        log.warning("the saved student has val/miou %s, its epoch had %s", metrics["val/miou"], best["val/miou"])
    if context.settings.pictures:
        if not (folder / "timeline.png").exists():
            plots.draw_timeline(timeline, folder / "timeline.png")
        _draw(context, folder, best, teacher, labels)
    write_evidence(context, folder, diagnostics, labels, teacher)
    console.show(console.comparison(metrics, teacher.metrics if teacher else None))
    return {"student": metrics, **({"teacher": teacher.metrics} if teacher else {})}


def _draw(
    context: RunContext, folder: RunFolder, best: Mapping[str, Any], teacher: MeasuredTeacher | None, labels: Tensor
) -> None:
    """Draw curves and predictions; `labels` are the student's over validation, N x H x W."""
    teacher_miou, teacher_labels = (teacher.metrics.get("val/miou"), teacher.labels) if teacher else (None, None)
    plots.draw_curves(folder.metrics(), best["epoch"], teacher_miou, folder / "curves.png")
    samples = [sample(context, index, labels, teacher_labels) for index in spaced(len(labels), SAMPLES)]
    plots.draw_predictions(samples, context.data.class_names, context.data.ignore_index, folder / "predictions.png")


def study_facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a study's table shows of a run besides its objective."""
    plain = {name: summary[name] for name in ("epochs", "planned_epochs", "best_epoch", "total_seconds")}
    student = {name: summary.get("student", {}).get(name) for name in ("val/miou", "test/miou", "latency_ms")}
    return plain | {name: value for name, value in student.items() if value is not None}


def objective(name: str, best: Mapping[str, Any], student: Mapping[str, Any]) -> float:
    """An objective's value: the best epoch's, or `student/...` of the measured student; NaN if it has none."""
    value = student[name.removeprefix("student/")] if name.startswith("student/") else best[name]
    return float("nan") if value is None else float(value)
