"""A study as a page: its question, best trials, parameter importance, pruning, and the winner's run in full.

Read through `kd.study` from the study's database; if that is gone, from the table in its folder.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from kd.errors import StudyError, one_line
from kd.report import run as one
from kd.report.elements import Cell, Folded, Page, Picture, Section, Table, Text, facts, figure, row
from kd.report.run_files import DAMAGES, Run, is_run, read
from kd.run.folder import picture_in
from kd.study import files, storage, tables
from kd.study.attributes import MLFLOW_RUN, RUN_FOLDER
from kd.study.comparison import Arm, partner
from kd.study.origin import Origin
from kd.study.results import Results, TrialState, names_in, ours_in, rows
from kd.study.space import describe
from kd.study.storage import Database
from kd.system.untrusted import read_bytes

MOST_BYTES = 32 * 2**20  # of its table
#: optuna's plots in the order of the page, with captions.
PLOTS = {
    "optimization_history": "The result of each trial, and the best so far.",
    "param_importances": "The share of the objective's variance that each parameter explains.",
    "intermediate_values": "Best value so far by epoch, for each trial; lines that end early were pruned.",
    "slice": "The objective over each parameter, of the complete trials; the best one is the large dot.",
    "pareto_front": "Trials that no other trial beats in every objective.",
    "timeline": "When each trial ran.",
}


@dataclass(frozen=True)
class Study:
    """A study: its folder, the results in its database, and it and the study without a teacher as arms to compare."""

    name: str
    folder: Path
    results: Results | None
    arm: Arm | None = None
    baseline: Arm | None = None

    @property
    def winner(self) -> Run | None:
        """The run of the best trial; None if no trial is complete or its folder is gone."""
        trial = self.results.best[0] if self.results and self.results.best else None
        return None if trial is None else _run_of(trial, self.folder)


def find(name: str, folder: Path, database: Database) -> Study:
    """Look up a study by name.

    Raises:
        StudyError: it is neither in the database nor in the folder.
    """
    if not database.exists():
        if not (folder / files.TABLE).is_file():
            raise StudyError(f"there is no study {name!r}: no {folder / files.TABLE}, and no database ({database})")
        return Study(name, folder, None)
    database.check()
    with database.reading():
        opened = database.open()
        if name not in names_in(opened) and (folder / files.TABLE).is_file():
            return Study(name, folder, None)
        results, other = Results.of(opened, name), partner(name)
        baseline = None if other == name else ours_in(opened, other)
        if baseline is None:
            return Study(name, folder, results)
        return Study(name, folder, results, Arm.of(opened, results), Arm.of(opened, baseline))


def page(study: Study) -> Page:
    """Page of a study, with the winner's run in full.

    Raises:
        StudyError: the database has values of unexpected types.
    """
    if study.results is None:
        return _without_database(study)
    try:
        return _page(study, study.results)
    except storage.DAMAGES as error:
        reason = one_line(str(error) or type(error).__name__)[:300]
        raise StudyError(f"study {study.name}: its database is damaged ({reason}); restore it from a copy") from error


def _page(study: Study, results: Results) -> Page:
    sections = [_question(results), _best(results), _importance(study, results), _pruning(results)]
    if study.arm and study.baseline and len(results.space.objectives) == 1:
        sections.insert(0, _against(study.arm, study.baseline))
    inner, tiles, missing = _winner(study, results)
    return Page(
        title=f"Study {study.name}",
        subtitle=_subtitle(results),
        badges=[f"{count} {state.name.lower()}" for state in TrialState if (count := results.count(state))],
        tiles=tiles,
        sections=[*sections, *_trials(rows(results)), *inner],
        missing=missing,
    )


def _winner(study: Study, results: Results) -> tuple[list[Section], list[tuple[str, Cell, str]], list[str]]:
    """Sections, tiles and missing parts of the winner's run."""
    winner = study.winner
    if winner is None:
        return [], [], ["the winner's run: no trial is complete, or its folder is gone"]
    sections, damaged = one.sections(winner, _without_teacher(study.baseline.study if study.baseline else None))
    who = "Best trial" if tables.useless(results) else "Winner"
    sections = [replace(s, id=f"winner-{s.id}", title=f"{who}: {s.title.lower()}") for s in sections]
    tiles = [*one.tiles(winner), ("trials", Cell(str(len(results.trials))), "")]
    return sections, tiles, [f"the winner's run: {line}" for line in [*winner.missing, *damaged]]


def _subtitle(results: Results) -> str:
    if not results.best:
        return "no trial is complete"
    number = results.best[0].number
    if len(results.space.objectives) > 1:
        return f"Pareto front of {len(results.best)} trials; trial {number} is shown in full"
    best = "there is no winner; the best is" if tables.useless(results) else "the winner is"
    return f"{best} trial {number}, shown in full below"


def _question(results: Results) -> Section:
    space = results.space
    asked = Origin.read(results.study).question
    blocks: list[Any] = [Text([asked])] if asked else []
    goals = ", ".join(f"{name} ({direction})" for name, direction in space.objectives.items())
    fixed = " ".join(space.fixed) or None
    shown = facts([("objective", goals), ("fixed", fixed)])
    searched = facts([(name, describe(distribution)) for name, distribution in space.searched.items()])
    return Section("question", "Question", [*blocks, shown, Text(["Searched:"]), searched], [shown])


def _best(results: Results) -> Section:
    table = tabled(tables.best_trials(results))
    several = len(results.space.objectives) > 1
    warning = [Text([f"{useless[0].upper()}{useless[1:]}."], "warning")] if (useless := tables.useless(results)) else []
    return Section("best", "Pareto front" if several else "Best trials", [*warning, table], [*warning, table])


def _importance(study: Study, results: Results) -> Section:
    """Importance of each parameter, and optuna's plots."""
    blocks: list[Any] = []
    if (shares := tables.importances(results)) is not None:
        blocks.append(tabled(shares, str(shares.title)))
    elif reason := tables.no_importances(results):
        blocks.append(Text([f"{reason[0].upper()}{reason[1:]}."]))
    found = {name: picture_in(study.folder / "plots", f"{name}.png") for name in PLOTS}
    blocks += [Picture(png, name.replace("_", " "), PLOTS[name]) for name, png in found.items() if png]
    if not any(found.values()):
        blocks.append(Text([f"There are no plots yet: kd study {study.name} draws them."], "warning"))
    return Section("importance", "Parameter importance", blocks)


def _pruning(results: Results) -> Section:
    text = Text([" ".join(line.split()) for line in tables.cost(results)])
    return Section("pruning", "Pruning", [text], [text])


def _against(arm: Arm, baseline: Arm) -> Section:
    parts = [*tables.against(arm, baseline)]
    lines = [" ".join(part.split()) for part in parts if isinstance(part, str)]
    verdicts = [Text([line.removeprefix("verdict ").capitalize()]) for line in lines if line.startswith("verdict")]
    unfair = [Text([line], "warning") for line in lines if not line.startswith("verdict")]
    shown = [tabled(part, str(part.title)) for part in parts if not isinstance(part, str)]
    note = (
        "The best trial of each study, on the validation split that it was chosen by, and on test. The verdict is over "
        "the seeds of both winners, which are paired; the interval is Student's, of 95 %, and does not "
        "cover the luck of the two searches."
    )
    return Section("baseline", "Did distilling help?", [*verdicts, *unfair, *shown, Text([note])], [*verdicts, *unfair])


def _without_teacher(baseline: Results | None) -> dict[str, Any]:
    """Figures of the best student without a teacher, for the winner's table."""
    trial = baseline.best[0] if baseline and baseline.best else None
    run = None if trial is None else _run_of(trial, None)
    return {"student without teacher": run.student} if run and run.student else {}


def _run_of(trial: Any, folder: Path | None) -> Run | None:
    """The run of a trial, in the study's folder or where the trial noted it; None if it is gone."""
    noted = trial.user_attrs.get(RUN_FOLDER)
    places = [*([folder / str(trial.number)] if folder else []), *([Path(noted)] if isinstance(noted, str) else [])]
    return next((read(place) for place in places if is_run(place)), None)


def _trials(lines: Iterable[dict[str, Any]]) -> list[Section]:
    """All trials in one table; nothing without trials."""
    shown = [{name: value for name, value in line.items() if name not in (RUN_FOLDER, MLFLOW_RUN)} for line in lines]
    if not shown:
        return []
    table = Table([*shown[0]], [row(*map(_cell, line.values())) for line in shown])
    return [Section("trials", "All trials", [Folded(f"{len(shown)} trials", [table])])]


def _cell(value: Any) -> Cell:
    if isinstance(value, float):
        return figure(value, form=".4g")
    return Cell("–" if value in (None, "") else str(value))


def tabled(table: RichTable, caption: str = "") -> Table:
    """A rich table as a table of the page; its title is left out, since the section's says it, or is the caption."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [row(*cells) for cells in zip(*columns, strict=True)]
    return Table([str(column.header) for column in table.columns], lines, caption)


def _without_database(study: Study) -> Page:
    """Page of a study whose database is gone, from the table in its folder."""
    missing = ["the database of the study, so only its table is shown; give --storage or KD_STORAGE"]
    sections: list[Section] = []
    try:
        text = read_bytes(study.folder, files.TABLE, MOST_BYTES).decode("utf-8")
        sections += _trials([{str(k): v for k, v in line.items()} for line in csv.DictReader(io.StringIO(text))])
    except (csv.Error, *DAMAGES) as error:
        missing.append(f"{files.TABLE} is damaged ({type(error).__name__})")
    sections.append(Section("location", "Location", [facts([("folder", str(study.folder))])]))
    return Page(f"Study {study.name}", "without its database", [], [], sections, missing)
