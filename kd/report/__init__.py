"""`kd report`: a run, several runs or a study as one page of HTML, whole in itself, and in short on the terminal.

read       a run folder as plain values, whatever state it is in
blocks     what a page is made of
run        one run as sections, with outcome (its figures) and trust (how far they can be believed)
compare    several runs on one page
study      a study, its winner's run in full
pictures   diagrams that only a report has
page       blocks to HTML;  terminal: blocks to lines

It reads what the folder holds (for a study also its database), and executes nothing of it.
"""

import os
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
from kd.report import terminal
from kd.report.compare import MOST, compare
from kd.report.elements import Page
from kd.report.page import html
from kd.report.run import sections, tiles
from kd.report.run_files import DAMAGES, Run, is_run, read
from kd.run import console
from kd.system.files import write_atomically
from kd.system.installation import train_command

if TYPE_CHECKING:
    from kd.report.study import Study


def report(names: Sequence[str], output: Path | None = None, storage: str | None = None, show: bool = False) -> Path:
    """Write the page of a run or a study, or of several side by side; returns its file.

    Raises:
        RunError: something named is neither the folder of a run nor a study.
        StudyError: its database cannot be opened.
    """
    if len(names) > MOST:
        raise ConfigError(f"{len(names)} runs are more than a page can show side by side; give {MOST} at most")
    found = [_found(name, storage) for name in names]
    if len(found) == 1:
        page, usual = _alone(found[0])
    else:
        runs = [each if isinstance(each, Run) else _winner(each) for each in found]
        page, usual = compare(runs), project_root() / "runs" / "reports" / f"{_file_name(runs)}.html"
    target = (output or usual).absolute()
    text = html(page)
    write_atomically(target, lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace"))
    terminal.say(page)
    console.say(f"page     {target}")
    if show:
        webbrowser.open(target.as_uri())
    return target


def of_run(run: Run) -> Page:
    """The page of one run."""
    made, damaged = sections(run)
    badges = [run.state, *(["without a teacher"] if run.learns_alone else [])]
    title = f"Run {run.name}" if run.summary.get("student") or run.config else f"Teacher {run.path.name}"
    missing = [*_why_short(run), *run.missing, *damaged]
    return Page(title, _when(run), badges, tiles(run), made, missing)


def _when(run: Run) -> str:
    """When it ran, and how far it came."""
    begun, planned = run.identity.get("begun"), run.summary.get("planned_epochs")
    with suppress(*DAMAGES):
        date = f"{datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M} UTC, " if begun else ""
        of = f" of {int(planned)}" if planned else ""
        return f"{date}{len(run.records)}{of} epochs"
    return f"{len(run.records)} epochs"


def _why_short(run: Run) -> list[str]:
    """What the state of a run explains."""
    told = {
        "pruned": "it was pruned: no closing figures and no pictures are made of such a run",
        "running": f"it has not come to its end: it goes on, or was killed ({train_command()} resume=... resumes it)",
        "killed": f"it was stopped before its end; {train_command()} resume=<its folder> goes on with it",
        "failed": "it failed; what was written before is shown",
    }
    return [told[run.state]] if run.state in told else []


def _found(name: str, storage: str | None) -> "Run | Study":
    path = Path(name)
    if path.is_dir() and is_run(path):
        return read(path)
    from kd.report import study  # heavy: optuna
    from kd.study.storage import Database, default_url

    folder = path.absolute() if (path / study.TABLE).is_file() else project_root() / "runs" / "studies" / path.name
    beside = folder.parent / "studies.db"
    usual = f"sqlite:///{beside}" if beside.is_file() else default_url(project_root())
    database = Database(storage or os.environ.get("KD_STORAGE") or usual)
    if path.is_dir() and not (path / study.TABLE).is_file():
        raise RunError(
            f"{name}: not the folder of a run or a study (it has no config.yaml, run.json or trials.csv); name one "
            "below runs/"
        )
    if not database.exists() and not folder.is_dir():
        raise RunError(f"{name}: there is neither such a folder nor such a study; see runs/ and kd study")
    return study.find(folder.name, folder, database)


def _alone(found: "Run | Study") -> tuple[Page, Path]:
    if isinstance(found, Run):
        return of_run(found), found.path / "report.html"
    from kd.report import study

    return study.page(found), found.folder / "report.html"


def _winner(study: "Study") -> Run:
    if study.winner is None:
        raise RunError(f"{study.name}: this study has no winner yet, or its run folder is gone; leave it out")
    return replace(study.winner, identity={**study.winner.identity, "name": f"the winner of study {study.name}"})


def _file_name(runs: Sequence[Run]) -> str:
    """The runs' names as one name of a file."""
    plain = [re.sub(r"[^\w.-]+", "_", run.name) for run in runs]
    return "+".join(plain)[:150]
