"""What came of runs: `kd study`, `kd report`, `kd sync`, `kd ui`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from kd.cli.verb import add_verb
from kd.config.compose import compose, project_root
from kd.config.read import read


def add_study(verbs: Any) -> None:
    study = add_verb(
        verbs, "study", _study,
        help="show a study: best trials, what mattered, what pruning saved, against a study without teacher",
        description="Show a study as it stands, and bring its table, recipe and plots up to date.",
        epilog="example: kd study temperature_unfreeze --against no_teacher",
    )  # fmt: skip
    study.add_argument("name", nargs="?", help="the study; without it, all studies are listed")
    study.add_argument("--against", metavar="STUDY", help="set beside it (default: no_teacher, where there is one)")
    study.add_argument("--storage", metavar="URL", help="the database (default: KD_STORAGE, else the one under runs/)")
    study.add_argument("--no-files", action="store_true", help="print only; leave the study's folder as it is")


def _study(arguments: argparse.Namespace) -> None:
    from kd.study import folder  # heavy: optuna, matplotlib

    folder.show(arguments.name, arguments.against, arguments.storage, write_files=not arguments.no_files)


def add_report(verbs: Any) -> None:
    report = add_verb(
        verbs, "report", _report,
        help="a run, several runs or a study as one page of HTML, and in short here",
        description="Write one page that is whole in itself: what was asked, what came out, how far it can be trusted, "
        "what it cost. Two runs or more are set side by side; a study is shown with its winner's run.",
        epilog="example: kd report runs/2026-11-21/08-00-00-000000 --open",
    )  # fmt: skip
    report.add_argument(
        "names", nargs="+", metavar="run_or_study", help="the folder of a run, or a study's name or folder"
    )
    report.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the page (default: report.html in the folder)"
    )
    report.add_argument("--storage", metavar="URL", help="a study's database (default: KD_STORAGE, else its own)")
    report.add_argument("--open", action="store_true", help="show it in the browser")


def _report(arguments: argparse.Namespace) -> None:
    from kd.report import report  # heavy: torch, matplotlib

    report(arguments.names, arguments.output, arguments.storage, arguments.open)


def add_sync(verbs: Any) -> None:
    sync = add_verb(
        verbs, "sync", _sync,
        help="deliver runs to MLflow: what it did not take while they went on",
        description="Deliver run folders to MLflow: what is missing there is sent, and nothing twice.",
        epilog="example: kd sync runs/2026-11-21/08-00-00-000000",
    )  # fmt: skip
    sync.add_argument("folders", nargs="+", type=Path, metavar="run_folder", help="a folder that a run has left")
    sync.add_argument("--register", metavar="NAME", help="register their students as versions of this model, too")


def _sync(arguments: argparse.Namespace) -> None:
    from kd import tracking

    for folder in arguments.folders:
        sent = tracking.sync(folder, project_root())
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(sent.items()))
        print(f"sync     {folder}: {f'sent {told}' if told else 'nothing was missing'}", flush=True)
        if name := arguments.register or tracking.wanted_name(folder):
            from kd import deploy  # heavy: torch, onnx

            deploy.register(folder, name, project_root())


def add_ui(verbs: Any) -> None:
    ui = add_verb(
        verbs, "ui", _ui,
        help="MLflow's pages on the runs of this project",
        description="Start MLflow's pages on the store of the configuration, for this machine alone, until Ctrl-C. "
        "A browser is opened where this is a terminal on a machine with a display.",
        epilog="example: kd ui --port 5001 --no-open",
    )  # fmt: skip
    ui.add_argument("overrides", nargs="*", metavar="override", help="as for train.py: tracking.experiment=mine")
    ui.add_argument("--port", type=int, default=5000, help="where the browser finds them (default: 5000)")
    ui.add_argument("--open", action=argparse.BooleanOptionalAction, help="open a browser, or do not")


def _ui(arguments: argparse.Namespace) -> None:
    from kd import tracking

    settings = read(compose(arguments.overrides), look_at_data=False)
    store = tracking.Store(
        tracking.store_uri(settings.tracking, settings.root), settings.tracking.experiment, settings.root
    )
    sys.exit(tracking.serve(store, arguments.port, arguments.open))
