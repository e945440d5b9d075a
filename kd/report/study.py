"""A study as a page: its question, what won, what mattered, what pruning saved, and the winner's run in full.

Read through `kd.study` from the study's database; where that is gone, from the table in its folder.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from kd.config.compose import CONF
from kd.errors import StudyError
from kd.report import run as one
from kd.report.elements import Cell, Facts, Folded, Page, Picture, Section, Table, Text, facts, figure, row
from kd.report.run_files import DAMAGES, Run, is_run, picture_in, read
from kd.study import show
from kd.study.results import Results, TrialState, names_in, rows
from kd.study.space import describe
from kd.study.storage import Database

TABLE = "trials.csv"
BASELINE = "no_teacher"
#: optuna's plots in the order of the page, and what each shows.
PLOTS = {
    "optimization_history": "Each trial's result, and the best so far.",
    "param_importances": "The share of the objective's variance that each parameter explains.",
    "intermediate_values": "Each trial's best so far by epoch; lines that end early were pruned.",
    "slice": "The objective over each parameter.",
    "parallel_coordinate": "All parameters of each trial, joined.",
    "pareto_front": "The trials that no other beats in every objective.",
    "timeline": "When each trial ran.",
}


@dataclass(frozen=True)
class Study:
    """A study that was found: its folder, and what its database says, where there is one."""

    name: str
    folder: Path
    results: Results | None
    baseline: Results | None = None

    @property
    def winner(self) -> Run | None:
        """The run of the best trial; None where there is none, or its folder is gone."""
        trial = self.results.best[0] if self.results and self.results.best else None
        return None if trial is None else _run_of(trial, self.folder)


def find(name: str, folder: Path, database: Database) -> Study:
    """A study by name.

    Raises:
        StudyError: neither the database nor the folder knows it.
    """
    if not database.exists():
        if not (folder / TABLE).is_file():
            raise StudyError(f"there is no study {name!r}: no {folder / TABLE}, and no database ({database})")
        return Study(name, folder, None)
    storage = database.open()
    names = names_in(storage)
    if name not in names and (folder / TABLE).is_file():
        return Study(name, folder, None)
    baseline = Results.of(storage, BASELINE) if BASELINE in names and name != BASELINE else None
    return Study(name, folder, Results.of(storage, name), baseline)


def page(study: Study) -> Page:
    """The page of a study, its winner's run in full below."""
    if study.results is None:
        return _without_database(study)
    results, missing = study.results, []
    sections: list[Section | None] = [
        _question(results), _best(results), _plots(study, results), _cost(results),
    ]  # fmt: skip
    if study.baseline and len(results.space.objectives) == 1:
        sections.append(_against(results, study.baseline))
    sections.append(_trials(rows(results)))
    winner = study.winner
    tiles: Sequence[tuple[str, Cell, str]] = []
    if winner is None:
        missing.append("the winner's run: no trial has come to its end, or its folder is gone")
    else:
        inner, damaged = one.sections(winner, _without_teacher(study.baseline))
        missing += [f"the winner's run: {line}" for line in [*winner.missing, *damaged]]
        sections += [replace(s, id=f"winner-{s.id}", title=f"Winner: {s.title.lower()}") for s in inner]
        tiles = [*one.tiles(winner), ("trials", Cell(str(len(results.trials))), "")]
    return Page(
        title=f"Study {study.name}",
        subtitle=_told(results),
        badges=[f"{count} {state.name.lower()}" for state in TrialState if (count := results.count(state))],
        tiles=tiles,
        sections=[section for section in sections if section is not None],
        missing=missing,
    )


def _told(results: Results) -> str:
    if not results.best:
        return "no trial has come to its end"
    number = results.best[0].number
    if len(results.space.objectives) > 1:
        return f"{len(results.best)} trials that no other beats in every objective; trial {number} is shown in full"
    return f"the winner is trial {number}, shown in full below"


def _question(results: Results) -> Section:
    space = results.space
    asked = next((line for line in _shipped(results.name) if line.startswith("# ") and "@package" not in line), None)
    blocks: list[Any] = [Text([asked.removeprefix("# ")])] if asked else []
    goals = ", ".join(f"{name} ({direction})" for name, direction in space.objectives.items())
    fixed = " ".join(space.fixed) or None
    shown = facts([("objective", goals), ("fixed", fixed)])
    searched = [row(name, describe(distribution)) for name, distribution in space.searched.items()]
    return Section("question", "The question", [*blocks, shown, Table(["searched", "range"], searched)], [shown])


def _shipped(name: str) -> list[str]:
    """The lines of the study's own file, where it is one of the project's."""
    path = CONF / "sweeps" / f"{Path(name).name}.yaml"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _best(results: Results) -> Section:
    table = tabled(show.best_trials(results))
    several = len(results.space.objectives) > 1
    return Section("best", "The Pareto front" if several else "Best trials", [table], [table])


def _plots(study: Study, results: Results) -> Section:
    blocks: list[Any] = []
    if (shares := show.importances(results)) is not None:
        blocks += [
            Text(["The share of the objective's variance that each parameter explains (fANOVA)."]),
            tabled(shares),
        ]
    found = {name: picture_in(study.folder / "plots", f"{name}.png") for name in PLOTS}
    blocks += [Picture(png, name.replace("_", " "), PLOTS[name]) for name, png in found.items() if png]
    if not any(found.values()):
        blocks.append(Text([f"Its plots are not drawn yet: kd study {study.name} draws them."], "warning"))
    return Section("mattered", "What mattered", blocks)


def _cost(results: Results) -> Section:
    text = Text([" ".join(line.split()) for line in show.cost(results)])
    return Section("saved", "What pruning saved", [text], [text])


def _against(results: Results, baseline: Results) -> Section:
    blocks: list[Any] = []
    for part in [*show.against(results, baseline)]:
        blocks.append(Text([part], "warning") if isinstance(part, str) else tabled(part))
    blocks.append(Text(["The best trial of each, on the validation split that chose it, and on test."]))
    note = "The same budget spent on tuning a student without a teacher: what distilling adds is the difference."
    return Section("against", "Against a student without a teacher", [*blocks, Text([note])], blocks[:1])


def _without_teacher(baseline: Results | None) -> dict[str, Any]:
    """The figures of the best student without a teacher, for the winner's table."""
    trial = baseline.best[0] if baseline and baseline.best else None
    run = None if trial is None else _run_of(trial, None)
    return {"student without teacher": run.student} if run and run.student else {}


def _run_of(trial: Any, folder: Path | None) -> Run | None:
    noted = trial.user_attrs.get("run_folder")
    places = [*([folder / str(trial.number)] if folder else []), *([Path(noted)] if isinstance(noted, str) else [])]
    return next((read(place) for place in places if is_run(place)), None)


def _trials(lines: Iterable[dict[str, Any]]) -> Section | None:
    shown = [
        {name: value for name, value in line.items() if name not in ("run_folder", "mlflow_run")} for line in lines
    ]
    if not shown:
        return None
    table = Table([*shown[0]], [row(*map(_cell, line.values())) for line in shown])
    return Section("trials", "All trials", [Folded(f"{len(shown)} trials", [table])])


def _cell(value: Any) -> Cell:
    if isinstance(value, float):
        return figure(value, form=".4g")
    return Cell("–" if value in (None, "") else str(value))


def tabled(table: RichTable) -> Table:
    """A table of the terminal as one of the page."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [row(*cells) for cells in zip(*columns, strict=True)]
    return Table([str(column.header) for column in table.columns], lines)


def _without_database(study: Study) -> Page:
    """What the table in the folder tells."""
    missing = ["the database of the study: what follows is its table; give --storage, or KD_STORAGE"]
    sections: list[Section | None] = []
    try:
        with (study.folder / TABLE).open(encoding="utf-8", newline="") as file:
            lines = [dict(line) for line in csv.DictReader(file)]
        sections.append(_trials([{str(k): v for k, v in line.items()} for line in lines]))
    except (csv.Error, *DAMAGES) as error:
        missing.append(f"{TABLE} is damaged ({type(error).__name__})")
    where: list[Facts] = [facts([("folder", str(study.folder))])]
    sections.append(Section("where", "Where it is", where))
    return Page(f"Study {study.name}", "without its database", [], [], [s for s in sections if s], missing)
