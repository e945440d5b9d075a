"""How far to trust a run's figures: confusion, calibration, agreement with the teacher."""

from typing import Any

from kd.plan.timeline import from_one
from kd.report import pictures
from kd.report.elements import SHADES, Cell, Folded, Picture, Section, Table, Text, facts, figure, row
from kd.report.run_files import Run
from kd.training.calibration import expected_error, overconfidence
from kd.training.quality import SPLITS

MATRIX = 32  # classes; a larger confusion matrix is unreadable
CONFUSED = 8  # pairs of classes that are listed


def confusion(run: Run) -> Section | None:
    """Confusion matrices of student and teacher, in percent of the true pixels."""
    found = {
        (who, split): run.seen[name]
        for who in ("student", "teacher")
        for split in ("test", "val")
        if (name := f"{who}/{split}/confusion") in run.seen
    }
    if not found:
        return None
    shown = next(iter(found))
    blocks: list[Any] = [_matrix(run, *shown, found[shown]), Text([_confused(run, found[shown])])]
    blocks += [Folded(f"{who}, {SPLITS[split]}", [_matrix(run, who, split, counts)])
               for (who, split), counts in found.items() if (who, split) != shown]  # fmt: skip
    return Section("confusion", "Confusion", blocks)


def _matrix(run: Run, who: str, split: str, counts: Any) -> Any:
    names = run.class_names
    if tuple(counts.shape) != (len(names), len(names)):
        raise ValueError(f"the {who}'s confusion matrix on {split} should have {len(names)} classes")
    if len(names) > MATRIX:
        return Text([f"{len(names)} classes are too many for a readable matrix; see evidence.safetensors."])
    rows = []
    for name, line in zip(names, counts.tolist(), strict=True):
        total = sum(line)
        shares = [count / total if total else None for count in line]
        cells = [Cell("–") if s is None else Cell(f"{100 * s:.0f}", s, shade=round(s * SHADES)) for s in shares]
        rows.append([Cell(name), *cells, Cell(f"{total:,d}")])
    caption = f"Percentage of each true class (row) that the {who} assigns to each class (column), on {SPLITS[split]}."
    return Table(["truth", *names, "pixels"], rows, caption, square=True)


def _confused(run: Run, counts: Any) -> str:
    """The pairs of classes that are confused most often."""
    pairs = sorted(
        ((count, true, predicted) for true, line in enumerate(counts.tolist()) for predicted, count in enumerate(line)
         if true != predicted and count),
        reverse=True,
    )  # fmt: skip
    total, names = max(int(counts.sum()), 1), run.class_names
    named = [f"{names[t]} taken for {names[p]} ({count / total:.1%})" for count, t, p in pairs[:CONFUSED]]
    return f"Most frequent errors, as shares of all pixels: {'; '.join(named)}." if named else "No errors."


def calibration(run: Run) -> Section | None:
    """Reliability diagrams and ECE of student and teacher."""
    found = {
        f"{who}, {SPLITS[split]}": run.seen[name]
        for split in ("test", "val")
        for who in ("teacher", "student")
        if (name := f"{who}/{split}/calibration") in run.seen
    }
    if not found:
        return None
    rows = []
    for name, table in found.items():
        more = overconfidence(table)
        verdict = "–" if more is None else f"{'over' if more > 0 else 'under'}confident by {abs(more):.4f}"
        rows.append(row(name, figure(expected_error(table), f"ece.{name}"), verdict))
    split = "test" if any("test" in name for name in found) else "validation"
    shown = {name: table for name, table in found.items() if split in name}
    text = (
        "Confidence is the probability of the predicted class at temperature 1, whatever the temperature of the "
        "distillation. On the dashed line, 80 % of the pixels predicted with a confidence of 80 % are correct; bars "
        "below it mean overconfidence. ECE is the mean gap over 15 bins of equal width, weighted by pixels (Guo et al. "
        "2017, arXiv 1706.04599)."
    )
    errors = Table(["", "ECE", "mean confidence against accuracy"], rows)
    picture = Picture(pictures.reliability(shown), "accuracy over confidence, for teacher and student",
                      f"Reliability on {split}: bars are accuracy, dots the mean confidence of each bin.")  # fmt: skip
    return Section("calibration", "Calibration", [picture, errors, Text([text])], [errors])


def agreement(run: Run) -> Section | None:
    """The share of pixels that student and teacher label alike, and which of them is right where they differ."""
    validated = [record for record in run.records if record.get("val/teacher_agreement") is not None]
    counts = run.seen.get("student/val/jointly")
    if not validated and counts is None:
        return None
    best = [r for r in validated if r["epoch"] == run.summary.get("best_epoch")] or validated[-1:]
    blocks: list[Any] = []
    if best:
        share = figure(best[0]["val/teacher_agreement"], "best.val/teacher_agreement")
        blocks.append(facts([("pixels labelled alike, validation", share), ("best epoch", from_one(best[0]["epoch"]))]))
    if counts is not None and counts.sum():
        (neither, student), (teacher, both) = (counts.double() / counts.sum()).tolist()
        rows = [
            row("teacher is right", figure(both), figure(teacher)),
            row("teacher is wrong", figure(student), figure(neither)),
        ]
        blocks.append(Table(["share of pixels", "student is right", "student is wrong"], rows))
        blocks.append(
            Text([f"Only the teacher is right on {teacher:.1%} of pixels, only the student on {student:.1%}."])
        )
    return Section("agreement", "Agreement with the teacher", blocks, blocks[:1] if best else ())
