"""The outcome of a distillation: the best student measured, pictures and evidence written, the objective."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kd.data.source import spaced
from kd.errors import shown
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator, measure
from kd.experiment.evidence import SPACED, baseline_metrics, sample, student_diagnostics, thumbnail, write_evidence
from kd.experiment.measured_teacher import MeasuredTeacher
from kd.experiment.teacher_network import teacher_network
from kd.networks import saved
from kd.networks.cost import latencies_ms
from kd.plan.timeline import Timeline
from kd.run import console, plots
from kd.run.folder import RunFolder
from kd.run.predictions import draw_predictions
from kd.training.evaluation import Labels
from kd.training.quality import SPLITS, Compared, quality_metrics

COMPILED = 0.002  # by which mIoU may differ between a compiled network and the same as it is: bf16 rounds elsewhere

log = logging.getLogger(__name__)


def measure_student(
    evaluator: Evaluator,
    folder: RunFolder,
    best: Mapping[str, Any],
    teacher: MeasuredTeacher | None,
    timeline: Timeline,
) -> dict[str, Any]:
    """Measure the best student from its file, draw the pictures, write the evidence, print the table.

    Returns the size that all are measured at, the metrics of the student, of the teacher (if there is one) and of the
    trivial baseline, and the share of the way from baseline to teacher.
    """
    context, file = evaluator.context, folder / "student.safetensors"
    student = context.precision.place(saved.load_file(file))
    diagnostics = student_diagnostics(context, teacher)
    metrics, labels = measure(evaluator, student, file, diagnostics)
    within = COMPILED if context.settings.trainer.compile else 0.0  # the saved student is measured as it is
    if abs((metrics["val/miou"] or 0.0) - (best["val/miou"] or 0.0)) > within:
        log.warning("the saved student has val/miou %s, its epoch had %s", metrics["val/miou"], best["val/miou"])
    of_teacher = dict(teacher.metrics) if teacher else {}
    if teacher:  # whose own figure may be from another day, under another load
        both = {"student": student, "teacher": teacher_network(context, teacher.file)}
        latencies = latencies_ms(both, context.data.image_size, context.precision)
        metrics["latency_ms"], of_teacher["latency_ms"] = latencies["student"], latencies["teacher"]
    trivial = baseline_metrics(diagnostics, context.data.class_names)
    if context.settings.pictures:
        if not (folder / "timeline.png").exists():
            plots.draw_timeline(timeline, folder / "timeline.png")
        _draw_curves(context, folder, best, teacher, trivial)
        _draw_predictions(context, folder, teacher, labels, diagnostics["val"].scores)
    write_evidence(context, folder, diagnostics, labels, teacher)
    averaged = _averaged(best, context.settings.objective[0], context.settings.optimizer.ema)
    compared = Compared(context.data.class_names, metrics, of_teacher, trivial)
    console.show(console.comparison(compared, context.data.sizing.in_words))
    console.say(*filter(None, [compared.against_teacher(), averaged]))
    if warning := compared.warning():
        console.say(f"warning  {warning}")
    return {
        "measured_at": context.data.sizing.in_words,
        "student": metrics,
        **({"teacher": of_teacher} if teacher else {}),
        "baseline": trivial,
        **({"averaged": bool(best["val/averaged"])} if averaged else {}),
        **({} if compared.share_of_way is None else {"share_of_way": compared.share_of_way}),
    }


def _averaged(best: Mapping[str, Any], objective: str, decay: float) -> str | None:
    """Whether the student's weights are the average over the steps or the raw ones; None without an average."""
    if "val/averaged" not in best:
        return None
    metric = objective.removeprefix("val/")
    average, raw = (console.figure(best.get(f"val/{who}/{metric}")) for who in ("average", "raw"))
    saved, left = ("the average of the weights", "raw") if best["val/averaged"] else ("the raw weights", "average")
    own, other = (average, raw) if best["val/averaged"] else (raw, average)
    return f"student  {saved} of epoch {best['epoch'] + 1} saved: {objective} {own}, {left} {other} (ema={decay:g})"


def _draw_curves(
    context: RunContext, folder: RunFolder, best: Mapping[str, Any], teacher: MeasuredTeacher | None,
    trivial: Mapping[str, Any],
) -> None:  # fmt: skip
    references = {"teacher": teacher.metrics if teacher else {}, "trivial": trivial}
    names, weights = context.data.class_names, context.settings.loss.weights
    plots.draw_curves(folder.metrics(), best["epoch"], names, references, folder / "curves.png", weights)


def _draw_predictions(context: RunContext, folder: RunFolder, teacher: MeasuredTeacher | None, labels: Labels,
                      scores: Sequence[Tensor]) -> None:  # fmt: skip
    """Draw validation images with predictions; the student's `labels` and, by batch, `scores` (mIoU) are over all."""
    teacher_labels = teacher.labels if teacher else None
    chosen, by_picture = spaced(len(labels), SPACED), torch.cat(list(scores))
    samples: list[dict[str, Any]] = [sample(context, index, labels, teacher_labels) for index in chosen]
    if context.data.sizing.crops:
        samples = [{name: thumbnail(each).numpy() for name, each in found.items()} for found in samples]
    data = context.data
    for index, found in zip(chosen, samples, strict=True):
        found["note"] = f"{shown(data.name('val', index))}   mIoU {by_picture[index]:.3f}"
    draw_predictions(samples, data.class_names, data.void, folder / "predictions.png", data.sizing.in_words)


def study_facts(summary: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """What a study knows of a run: its length, its student's quality, and that of teacher and trivial baseline."""
    plain = {name: summary[name] for name in ("epochs", "planned_epochs", "best_epoch", "total_seconds")}
    metrics = [f"{split}/{name}" for split in SPLITS for name in quality_metrics(class_names)]
    for name in summary["objective"]:
        metrics += [name, name.replace("val/", "test/", 1)] if name.startswith("val/") else []
    found = {name: summary.get("student", {}).get(name) for name in (*metrics, "latency_ms")}
    for who in ("teacher", "baseline"):
        found |= {f"{who}/{name}": summary.get(who, {}).get(name) for name in metrics}
    return plain | {name: value for name, value in found.items() if value is not None}


def objective(name: str, best: Mapping[str, Any], student: Mapping[str, Any]) -> float:
    """An objective's value: the best epoch's, or `student/...` of the measured student; NaN if it has none."""
    value = student[name.removeprefix("student/")] if name.startswith("student/") else best[name]
    return float("nan") if value is None else float(value)
