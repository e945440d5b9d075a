"""How far a run's figures can be believed: confusion, calibration, agreement with the teacher."""

from typing import Any

from kd.report import pictures
from kd.report.elements import SHADES, Cell, Folded, Picture, Section, Table, Text, facts, figure, row
from kd.report.outcome import SPLITS
from kd.report.run_files import Run
from kd.training.calibration import expected_error, overconfidence

MATRIX = 32  # classes, of a confusion matrix that can be read
CONFUSED = 8  # pairs of classes that are named


def confusion(run: Run) -> Section | None:
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
        raise ValueError(f"the confusion matrix of the {who} on {split} is not of {len(names)} classes")
    if len(names) > MATRIX:
        return Text([f"{len(names)} classes: too many for a matrix that can be read; evidence.safetensors holds it."])
    rows = []
    for name, line in zip(names, counts.tolist(), strict=True):
        total = sum(line)
        shares = [count / total if total else None for count in line]
        cells = [Cell("–") if s is None else Cell(f"{100 * s:.0f}", s, shade=round(s * SHADES)) for s in shares]
        rows.append([Cell(name), *cells, Cell(f"{total:,d}")])
    caption = (f"Of the pixels that are truly of a row's class, the share in percent that the {who} gives to each "
               f"column's ({SPLITS[split]}).")  # fmt: skip
    return Table(["truth", *names, "pixels"], rows, caption, square=True)


def _confused(run: Run, counts: Any) -> str:
    pairs = sorted(
        ((count, true, predicted) for true, line in enumerate(counts.tolist()) for predicted, count in enumerate(line)
         if true != predicted and count),
        reverse=True,
    )  # fmt: skip
    total, names = max(int(counts.sum()), 1), run.class_names
    named = [f"{names[t]} taken for {names[p]} ({count / total:.1%})" for count, t, p in pairs[:CONFUSED]]
    return f"The most frequent mistakes, of all pixels: {'; '.join(named)}." if named else "There is no mistake at all."


def calibration(run: Run) -> Section | None:
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
        told = "–" if more is None else f"{'over' if more > 0 else 'under'}confident by {abs(more):.4f}"
        rows.append(row(name, figure(expected_error(table), f"ece.{name}"), told))
    split = "test" if any("test" in name for name in found) else "validation"
    shown = {name: table for name, table in found.items() if split in name}
    text = (
        "Confidence is the probability of the predicted class at temperature 1, whatever temperature the student was "
        "taught at. Where the bars reach the dashed line, a pixel predicted with 80 % is right in 80 % of cases; below "
        "it, the network claims more than it holds. ECE is the mean gap over 15 bins of equal width, weighted by "
        "pixels (Guo et al. 2017, arXiv 1706.04599)."
    )
    closing = Table(["", "ECE", "mean confidence against accuracy"], rows)
    picture = Picture(pictures.reliability(shown), "accuracy over confidence, for teacher and student",
                      f"Reliability on {split}: bars are accuracy, dots the mean confidence of each bin.")  # fmt: skip
    return Section("calibration", "Calibration", [picture, closing, Text([text])], [closing])


def agreement(run: Run) -> Section | None:
    looked = [record for record in run.records if record.get("val/teacher_agreement") is not None]
    counts = run.seen.get("student/val/jointly")
    if not looked and counts is None:
        return None
    best = [r for r in looked if r["epoch"] == run.summary.get("best_epoch")] or looked[-1:]
    blocks: list[Any] = []
    if best:
        told = figure(best[0]["val/teacher_agreement"], "best.val/teacher_agreement")
        blocks.append(facts([("pixels that both label alike, validation", told), ("best epoch", best[0]["epoch"])]))
    if counts is not None and counts.sum():
        (neither, student), (teacher, both) = (counts.double() / counts.sum()).tolist()
        rows = [
            row("teacher is right", figure(both), figure(teacher)),
            row("teacher is wrong", figure(student), figure(neither)),
        ]
        blocks.append(Table(["share of pixels", "student is right", "student is wrong"], rows))
        alone = f"Of all pixels, {teacher:.1%} are right by the teacher alone, {student:.1%} by the student alone."
        blocks.append(Text([alone]))
    return Section("agreement", "Agreement with the teacher", blocks, blocks[:1] if best else ())
