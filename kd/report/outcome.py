"""Results of a run as sections: its figures, per class, learning curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kd.plan.timeline import from_one
from kd.report import pictures
from kd.report.elements import (
    Cell,
    Facts,
    Folded,
    Picture,
    Section,
    Table,
    Text,
    barred,
    facts,
    figure,
    row,
)
from kd.report.run_files import Run
from kd.run import plots
from kd.run.console import SIZES, quality_rows
from kd.system.untrusted import mapping_at
from kd.training.quality import SPLITS, Compared

Others = Mapping[str, Mapping[str, Any]]  # title of a column -> figures by name

FOREGROUND = " Its IoU and Dice of the foreground are at least those of foreground everywhere."


def results(run: Run, others: Others) -> Section | None:
    """Teacher, student, `others` and trivial baseline side by side, with what follows from the comparison."""
    best = [] if run.student or not run.records else [facts_of_best(run)]
    columns = {
        **({"teacher": ("teacher", run.teacher)} if run.teacher else {}),
        **({"student": ("student", run.student)} if run.student else {}),
        **{title: ("", figures) for title, figures in others.items()},
        **({"trivial baseline": ("baseline", run.baseline)} if run.baseline else {}),
    }
    if not columns:
        return Section("results", "Results", best, best) if best else None
    table = side_by_side({title: figures for title, (_, figures) in columns.items()},
                         run.class_names, {title: key for title, (key, _) in columns.items()})  # fmt: skip
    compared = Compared(run.class_names, run.student, run.teacher, run.baseline)
    notes = [Text(lines)] if (lines := _notes(run, compared)) else []
    warnings = [Text([warning], "warning")] if (warning := compared.warning()) else []
    return Section("results", "Results", [*best, table, *notes, *warnings], [*best, table, *warnings])


def _notes(run: Run, compared: Compared) -> list[str]:
    notes = (
        [f"Best epoch {from_one(run.summary['best_epoch'])}, chosen on validation."]
        if "best_epoch" in run.summary
        else []
    )
    if sentence := compared.against_teacher():
        share = run.student["parameters"] / run.teacher["parameters"]
        notes.append(f"{sentence} It has {share:.1%} of its teacher's parameters.")
    if measured_at := run.summary.get("measured_at"):
        notes.append(f"Measured at {measured_at}.")
    if masks := run.evidence.get("baseline_masks"):
        binary = len(run.class_names) == 2
        every = masks == mapping_at(run.evidence, "images").get("train")
        notes.append(
            f"The trivial baseline predicts the most frequent class at each pixel, whatever the image; it is made from "
            f"{masks} training masks{'' if every else ', evenly spaced'}.{FOREGROUND if binary else ''}"
        )
    return notes


def side_by_side(
    columns: Mapping[str, Mapping[str, Any]], class_names: Sequence[str], prefixes: Mapping[str, str] | None = None
) -> Table:
    """Figures of several networks, one column each; rows without any figure are left out."""
    rows = []
    for key, title in (*((key, title) for key, title, _ in SIZES), *quality_rows(class_names)):
        cells = [
            replace(figure(figures.get(key), key), key=_key(prefixes, name, key)) for name, figures in columns.items()
        ]
        if any(cell.value is not None for cell in cells):
            rows.append(row(title, *cells))
    return Table(["", *columns], rows)


def _key(prefixes: Mapping[str, str] | None, name: str, key: str) -> str:
    return f"{prefixes[name]}.{key}" if prefixes and prefixes.get(name) else ""


def facts_of_best(run: Run) -> Facts:
    """How far an unfinished run has come."""
    best = run.best
    return facts([
        ("epochs trained", len(run.records)),
        ("best val/miou so far", None if best is None else figure(best["val/miou"])),
        ("in epoch", None if best is None else from_one(best["epoch"])),
        ("planned epochs", run.summary.get("planned_epochs")),
    ])  # fmt: skip


def per_class(run: Run) -> Section | None:
    """IoU of each class, of teacher, student and trivial baseline."""
    columns = {"teacher": ("teacher", run.teacher), "student": ("student", run.student),
               "trivial baseline": ("baseline", run.baseline)}  # fmt: skip
    tables = class_tables(run.class_names, columns)
    note = "IoU of each class over all pixels of the split; – if the class is neither present nor predicted."
    return Section("per-class", "Per class", [*tables, Text([note])]) if tables else None


def class_tables(names: Sequence[str], columns: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[Any]:
    """A table per split of each class's IoU, the test split first and the other folded; empty without any figure.

    `columns` has figures by title, each with the first part of their names in files.
    """
    tables = []
    for split in sorted(SPLITS, key=lambda each: each != "test"):
        there = {title: column for title, column in columns.items()
                 if any(name.startswith(f"{split}/iou/") for name in column[1])}  # fmt: skip
        rows = [
            [Cell(name, swatch=number), *(barred(figure(figures.get(key := f"{split}/iou/{name}"), f"{who}.{key}"))
                                          for who, figures in there.values())]
            for number, name in enumerate(names)
        ]  # fmt: skip
        if there:
            tables.append((SPLITS[split], Table([f"IoU, {SPLITS[split]}", *there], rows)))
    return [table if number == 0 else Folded(split, [table]) for number, (split, table) in enumerate(tables)]


def curves(run: Run) -> Section | None:
    """Losses and validation figures by epoch."""
    if not run.records:
        return None
    best = run.summary.get("best_epoch")
    if best is None:
        best = (run.best or run.records[-1])["epoch"]
    references = {"teacher": run.teacher, "trivial": run.baseline}
    picture = run.picture("curves.png") or pictures.drawn(
        lambda path: plots.draw_curves(run.records, best, run.class_names, references, path)
    )
    unfrozen = [
        f"{after['unfrozen_blocks']} from epoch {from_one(after['epoch'])}"
        for before, after in pairwise(run.records)
        if after["unfrozen_blocks"] != before["unfrozen_blocks"]
    ]
    listed = ", ".join([f"{run.records[0]['unfrozen_blocks']} at first", *unfrozen[:20]])
    caption = f"Losses and quality by epoch. Grey lines: an encoder block is unfrozen. Unfrozen blocks: {listed}."
    shown = Picture(picture, "losses and validation figures over epochs", caption)
    return Section("curves", "Learning curves", [shown])
