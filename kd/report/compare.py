"""Several runs on one page: their differences, their curves overlaid, their figures side by side."""

import shlex
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from kd.plan.timeline import from_one
from kd.report import pictures
from kd.report.elements import (
    Cell,
    Code,
    Folded,
    Page,
    Picture,
    Section,
    Table,
    Text,
    facts,
    figure,
    row,
)
from kd.report.outcome import class_tables, side_by_side
from kd.report.run import in_short
from kd.report.run_files import DAMAGES, Run
from kd.report.samples import shared_predictions, strangers
from kd.settings import changes_no_result, flat
from kd.system.installation import train_command
from kd.training.calibration import expected_error
from kd.training.quality import SPLITS, Compared, metric_title

MOST = len(ascii_uppercase)
SHORT = 12  # characters of a digest that is only shown to be compared


def compare(runs: Sequence[Run]) -> Page:
    """Page of two or more runs."""
    letters = dict(zip(ascii_uppercase, runs, strict=False))
    sections, missing = [], [f"{letter}: {line}" for letter, run in letters.items() for line in run.missing]
    parts = (_runs, _outcome, _differences, _curves, _results, _per_class, shared_predictions, _calibration, _cost,
             _reproduce)  # fmt: skip
    for part in parts:
        try:
            section = part(letters)
        except DAMAGES as error:
            missing.append(f"{part.__name__.strip('_').replace('_', ' ')}: damaged data ({type(error).__name__})")
            continue
        if section is not None:
            sections.append(section)
    title = " against ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} runs"
    states = [f"{letter} {run.state}" for letter, run in letters.items()]
    return Page(title, "comparison", states, [], sections, missing)


Letters = dict[str, Run]


def _runs(runs: Letters) -> Section:
    rows = [(letter, f"{run.name}: {run.identity.get('name') or ' '.join(run.overrides) or 'defaults'}"
             f"{' (without a teacher)' if run.learns_alone else ''}") for letter, run in runs.items()]  # fmt: skip
    shown = facts(rows)
    return Section("runs", "Runs", [shown], [shown])


def _outcome(runs: Letters) -> Section | None:
    """Which student is better by the decisive figure, and what stands in the way of saying so."""
    measured = {letter: run for letter, run in runs.items() if run.student}
    if len(measured) < 2:
        return None
    first = next(iter(measured.values()))
    key = Compared(first.class_names, first.student, {}, {}).decisive
    split, _, metric = key.partition("/")
    values = {letter: run.student[key] for letter, run in measured.items() if run.student.get(key) is not None}
    if len(values) < 2:
        return None
    (best, most), (second, less), *_ = sorted(values.items(), key=lambda pair: -pair[1])
    *equal, last = [letter for letter, value in values.items() if value == most]
    reached = f"{metric_title(metric)} {most:.4f} on {SPLITS[split]}"
    lines = [f"{', '.join(equal)} and {last} are equally good: {reached}."] if equal else [
        f"{best} has the best student: {reached}, {most - less:+.4f} against {second}. One run is one seed, so this "
        "alone says little: kd verdict compares two recipes over seeds."
    ]  # fmt: skip
    sizes = {letter: str(run.summary.get("measured_at", "")) for letter, run in measured.items()}
    blocks: list[Any] = [Text(lines)]
    if len({*sizes.values()}) > 1:
        listed = "; ".join(f"{letter} at {size or 'an unknown size'}" for letter, size in sizes.items())
        blocks.append(Text([f"The figures are of different sizes, and cannot be compared: {listed}."], "warning"))
    elif strange := strangers(measured):
        listed = f"{', '.join(strange)}: measured on other pictures than the other runs"
        blocks.append(Text([f"{listed}, so the figures cannot be compared."], "warning"))
    return Section("outcome", "Which is better?", blocks, blocks)


def _differences(runs: Letters) -> Section:
    configs = {
        letter: {
            **{key: in_short(value) for key, value in flat(run.config)},
            "data.fingerprint": str(run.identity.get("data_fingerprint", "–"))[:SHORT],
        }
        for letter, run in runs.items()
    }
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differ = [key for key in keys if len({config.get(key, "–") for config in configs.values()}) > 1]
    free = [key for key in differ if changes_no_result(key)]
    rest = [key for key in differ if key not in free]

    def table(keys: Sequence[str]) -> Table:
        return Table(
            ["setting", *runs], [row(key, *(_setting(c.get(key, "–")) for c in configs.values())) for key in keys]
        )

    blocks: list[Any] = [table(rest)] if rest else [Text(["No setting that changes the result differs."])]
    if alone := [letter for letter, run in runs.items() if run.learns_alone]:
        blocks.append(Text([f"Temperature and teacher settings have no effect in {', '.join(alone)}: no teacher."]))
    if free:
        blocks.append(Folded(f"settings that do not change the result ({len(free)})", [table(free)]))
    commits = {letter: run.commit or "unknown" for letter, run in runs.items()}
    if len(set(commits.values())) > 1:
        listed = ", ".join(f"{letter} {commit[:SHORT]}" for letter, commit in commits.items())
        blocks.append(Text([f"The runs are from different commits: {listed}."], "warning"))
    return Section("differences", "Differences", blocks, blocks[:1])


def _setting(text: str) -> Cell:
    """A configuration value; a long number is rounded for display."""
    try:
        return figure(float(text), form=".6g") if "." in text and len(text) > 8 else Cell(text)
    except ValueError:
        return Cell(text)


def _curves(runs: Letters) -> Section | None:
    records = {letter: run.records for letter, run in runs.items() if run.records}
    if not records:
        return None
    caption = "Validation quality, training loss (each run's own terms), temperature and unfrozen blocks by epoch."
    picture = Picture(pictures.overlay(records), "curves of all runs, overlaid", caption)
    return Section("curves", "Learning curves", [picture])


def _results(runs: Letters) -> Section | None:
    """The students first, which the page is about, then their teachers and the trivial baselines, each once."""
    columns: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for letter, run in runs.items():
        if run.student:
            title = f"{letter}, {'without a teacher' if run.learns_alone else 'student'}"
            columns[title], keys[title] = run.student, f"{letter}.student"
    for letters in _together({letter: run.teacher for letter, run in runs.items()}):
        title = f"{' and '.join(letters)}, teacher"
        columns[title], keys[title] = runs[letters[0]].teacher, f"{letters[0]}.teacher"
    baselines = _together({letter: run.baseline for letter, run in runs.items()})
    for letters in baselines:
        whose = f"{' and '.join(letters)}, " if len(baselines) > 1 else ""
        columns[f"{whose}trivial baseline"] = runs[letters[0]].baseline
    if not columns:
        return None
    table = side_by_side(columns, _class_names(runs), keys)
    note = "One run is one seed: differences smaller than those between seeds mean nothing."
    return Section("results", "Results", [table, Text([note])], [table])


def _together(networks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The letters of the networks that have figures, together where these are the same but for the latency."""
    found: dict[str, list[str]] = {}
    for letter, network in networks.items():
        figures = {name: value for name, value in network.items() if not name.startswith("latency")}
        if figures:
            found.setdefault(repr(figures), []).append(letter)
    return [*found.values()]


def _class_names(runs: Letters) -> list[str]:
    return [*dict.fromkeys(name for run in runs.values() for name in run.class_names)]


def _per_class(runs: Letters) -> Section | None:
    columns = {f"{letter}, student": (f"{letter}.student", run.student) for letter, run in runs.items()}
    tables = class_tables(_class_names(runs), columns)
    return Section("per-class", "Per class", tables) if tables else None


def _calibration(runs: Letters) -> Section | None:
    rows = []
    for split, title in SPLITS.items():
        cells = [table if (table := run.seen.get(f"student/{split}/calibration")) is None else expected_error(table)
                 for run in runs.values()]  # fmt: skip
        if any(cell is not None for cell in cells):
            rows.append(row(f"ECE, {title}", *(figure(cell) for cell in cells)))
    return Section("calibration", "Calibration", [Table(["", *runs], rows)]) if rows else None


def _cost(runs: Letters) -> Section:
    def spent(run: Run) -> list[Any]:
        return [figure(run.summary.get("total_seconds"), form=".1f"), len(run.records),
                figure(from_one(run.summary.get("best_epoch")), form="d")]  # fmt: skip

    columns = [spent(run) for run in runs.values()]
    titles = ("total seconds", "epochs", "best epoch")
    rows = [row(title, *cells) for title, cells in zip(titles, zip(*columns, strict=True), strict=True)]
    return Section("cost", "Cost", [Table(["", *runs], rows)])


def _reproduce(runs: Letters) -> Section:
    lines: list[str] = []
    for letter, run in runs.items():
        lines += [f"# {letter}", f"{train_command()} {shlex.join(run.arguments)}".rstrip()]
    folders = facts([(letter, str(run.path)) for letter, run in runs.items()])
    return Section("reproduce", "Reproduce", [Code(lines), folders])
