"""`kd report`: a run, several runs or a study as one self-contained HTML page, with a summary on the terminal.

run_files  a run folder as plain values, whatever state it is in
elements   the parts of a page
run        one run as sections, with outcome (its figures) and reliability (how far to trust them)
compare    several runs on one page
study      a study, with its winner's run in full
pictures   diagrams that only a report has
page       elements to HTML;  terminal: elements to lines

It reads the run folder (and the database of a study) and executes nothing in it.
"""

import re
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kd.config.compose import project_root
from kd.errors import ConfigError, RunError
from kd.plan.timeline import in_epochs
from kd.report import terminal
from kd.report.compare import MOST, compare
from kd.report.elements import Page
from kd.report.page import html
from kd.report.run import sections, tiles
from kd.report.run_files import DAMAGES, Run, is_run, read
from kd.run import console
from kd.system.files import write_atomically
from kd.system.installation import train_command
from kd.system.places import REPORTS, STUDIES

if TYPE_CHECKING:
    from kd.report.study import Study


def report(names: Sequence[str], output: Path | None = None, storage: str | None = None, show: bool = False) -> Path:
    """Write the page of a run or a study, or of several runs side by side; returns its path.

    `storage` is the URL of a study's database; `show` opens the page in a browser.

    Raises:
        RunError: a name is neither a run folder nor a study.
        StudyError: the database of a study cannot be opened.
    """
    if len(names) > MOST:
        raise ConfigError(f"a page shows {MOST} runs at most, but {len(names)} were given")
    found = [_found(name, storage) for name in names]
    if len(found) == 1:
        page, default = _page_of(found[0])
    else:
        runs = [each if isinstance(each, Run) else _winner(each) for each in found]
        page, default = compare(runs), project_root() / REPORTS / f"{_file_name(runs)}.html"
    target = (output or default).absolute()
    text = html(page)
    write_atomically(target, lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace"))
    terminal.say(page)
    console.say(f"page     {target}")
    if show:
        webbrowser.open(target.as_uri())
    return target


def of_run(run: Run) -> Page:
    """Page of one run."""
    made, damaged = sections(run)
    badges = [run.state, *(["without a teacher"] if run.learns_alone else [])]
    title = f"Run {run.name}" if run.summary.get("student") or run.config else f"Teacher {run.path.name}"
    missing = [*_state_notes(run), *run.missing, *damaged]
    return Page(title, _when(run), badges, tiles(run), made, missing)


def _when(run: Run) -> str:
    """Date of the run, and its number of epochs."""
    begun, planned = run.identity.get("begun"), run.summary.get("planned_epochs")
    with suppress(*DAMAGES):
        date = f"{datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M} UTC, " if begun else ""
        return f"{date}{f'{len(run.records)} of ' if planned else ''}{in_epochs(int(planned or len(run.records)))}"
    return in_epochs(len(run.records))


def _state_notes(run: Run) -> list[str]:
    """Why an unfinished run has no results."""
    command = f"{train_command()} resume=<its folder>"
    notes = {
        "pruned": "results and pictures: the run was pruned",
        "running": f"results: the run is still running, or was killed ({command} resumes it)",
        "killed": f"results: the run was stopped; {command} resumes it",
        "failed": "results: the run failed",
    }
    return [notes[run.state]] if run.state in notes else []


def _found(name: str, storage: str | None) -> "Run | Study":
    """The run in a folder, or the study with a name or folder."""
    path = Path(name)
    if path.is_dir() and is_run(path):
        return read(path)
    from kd.report import study  # heavy: optuna
    from kd.study import files
    from kd.study.address import default_url
    from kd.study.storage import Database

    folder = path.absolute() if (path / files.TABLE).is_file() else project_root() / STUDIES / path.name
    beside = folder.parent / "studies.db"
    default = f"sqlite:///{beside}" if beside.is_file() else default_url(project_root())
    database = Database.chosen(storage, default)
    if path.is_dir() and not (path / files.TABLE).is_file():
        raise RunError(
            f"{name}: not the folder of a run or a study (it has no config.yaml, run.json or trials.csv); give one "
            "below runs/"
        )
    if not database.exists() and not folder.is_dir():
        raise RunError(f"{name}: no such folder and no such study; see runs/ and kd study")
    return study.find(folder.name, folder, database)


def _page_of(found: "Run | Study") -> tuple[Page, Path]:
    """Page of a run or a study, and its default path."""
    if isinstance(found, Run):
        return of_run(found), found.path / "report.html"
    from kd.report import study

    return study.page(found), found.folder / "report.html"


def _winner(study: "Study") -> Run:
    """The run of a study's best trial, named as such."""
    if study.winner is None:
        raise RunError(f"{study.name}: this study has no winner yet, or the winner's run folder is gone; leave it out")
    return replace(study.winner, identity={**study.winner.identity, "name": f"the winner of study {study.name}"})


def _file_name(runs: Sequence[Run]) -> str:
    """The runs' names as one file name."""
    plain = [re.sub(r"[^\w.-]+", "_", run.name) for run in runs]
    return "+".join(plain)[:150]
