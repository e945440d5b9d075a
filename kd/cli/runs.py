"""The results of runs and studies: `kd study`, `kd report`, `kd sync`, `kd ui`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from kd.cli.verb import add_overrides, add_verb
from kd.errors import ConfigError


def add_study(verbs: Any) -> None:
    study = add_verb(
        verbs, "study", _study,
        help="show a study: best trials, importances, what pruning saved, the comparison without a teacher",
        description="Show the current state of a study, and update its table, recipe and plots.",
        epilog="example: kd study temperature_unfreeze --against no_teacher",
    )  # fmt: skip
    study.add_argument("name", nargs="?", help="the study; without it, all studies are listed")
    study.add_argument("--against", metavar="STUDY", help="compare with this study (default: no_teacher, if it exists)")
    study.add_argument("--storage", metavar="URL", help="the database (default: KD_STORAGE, else the one under runs/)")
    study.add_argument("--no-files", action="store_true", help="print only; do not update the study's folder")


def _study(arguments: argparse.Namespace) -> None:
    from kd.study import show  # heavy: optuna, matplotlib

    show.show(arguments.name, arguments.against, arguments.storage, write_files=not arguments.no_files)


def add_verdict(verbs: Any) -> None:
    verdict = add_verb(
        verbs, "verdict", _verdict,
        help="find out whether distilling helps on your data: two studies, both winners over seeds, and one line",
        description="Run a study with a teacher and an equal one without, train both winners with several seeds, and "
        "say whether the taught student is better. The same command resumes it, and with more --seeds continues it.",
        epilog="example: kd verdict --name nuclei data=folder data.root=my_data trainer.epochs=20",
    )  # fmt: skip
    add_overrides(verdict, "as for kd train, for both arms")
    verdict.add_argument("--name", default="verdict", help="of the studies, <name>-distilled and <name>-alone")
    verdict.add_argument("--trials", type=int, default=40, metavar="N", help="trials of each study (default: 40)")
    verdict.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of each winner (default: 5)")
    verdict.add_argument(
        "--price", type=float, default=25.0, metavar="N", help="full trainings at most, in all (default: 25)"
    )
    verdict.add_argument(
        "--least", type=float, default=0.004, metavar="GAIN", help="the least gain that is worth a teacher (0.004)"
    )


def _verdict(arguments: argparse.Namespace) -> None:
    from kd.study.protocol import Protocol, run  # heavy: optuna

    given = vars(arguments)
    names = ("name", "trials", "seeds", "price", "least", "overrides", "config_dir")
    run(Protocol(**{name: given[name] for name in names}))


def add_report(verbs: Any) -> None:
    report = add_verb(
        verbs, "report", _report,
        help="write one HTML page about a run, several runs or a study, and print a summary",
        description="Write one self-contained HTML page: setup, results, reliability, cost. Several runs are compared; "
        "a study is shown with its best run.",
        epilog="example: kd report runs/2026-11-21/08-00-00-000000 --open",
    )  # fmt: skip
    report.add_argument("names", nargs="+", metavar="run_or_study", help="a run folder, or a study's name or folder")
    report.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the page (default: report.html in the folder)"
    )
    report.add_argument("--storage", metavar="URL", help="a study's database (default: KD_STORAGE, else its own)")
    report.add_argument("--open", action="store_true", help="open the page in a browser")


def _report(arguments: argparse.Namespace) -> None:
    from kd.report import report  # heavy: torch, matplotlib

    report(arguments.names, arguments.output, arguments.storage, arguments.open)


def add_sync(verbs: Any) -> None:
    sync = add_verb(
        verbs, "sync", _sync,
        help="send runs to MLflow that it missed while they ran",
        description="Send run folders to MLflow: what is missing there, nothing twice.",
        epilog="example: kd sync runs/2026-11-21/08-00-00-000000",
    )  # fmt: skip
    sync.add_argument("folders", nargs="+", type=Path, metavar="run_folder", help="a run folder")
    sync.add_argument("--register", metavar="NAME", help="also register their students as versions of this model")
    sync.add_argument(
        "--uri", help="the store (default: MLFLOW_TRACKING_URI, else tracking.uri, else the one under mlruns/)"
    )


def _sync(arguments: argparse.Namespace) -> None:
    from pydantic import TypeAdapter, ValidationError

    from kd import tracking
    from kd.config.compose import compose
    from kd.config.read import read
    from kd.settings.run import ModelName

    try:
        TypeAdapter(ModelName | None).validate_python(arguments.register)
    except ValidationError as error:
        allowed = "letters, digits, spaces, and _ . - only, 200 at most"
        raise ConfigError(f"--register={arguments.register}: a model's name has {allowed}") from error
    settings = read(compose([]), look_at_data=False)
    uri = arguments.uri or settings.tracking.uri
    for folder in arguments.folders:
        sent = tracking.sync(folder, settings.root, uri)
        summary = ", ".join(f"{count} {kind}" for kind, count in sorted(sent.items()))
        print(f"sync     {folder}: {f'sent {summary}' if summary else 'nothing was missing'}", flush=True)
        if name := arguments.register or tracking.wanted_name(folder):
            from kd import deploy  # heavy: torch, onnx

            deploy.register(folder, name, settings.root, uri)


def add_ui(verbs: Any) -> None:
    ui = add_verb(
        verbs, "ui", _ui,
        help="show the runs of this project in MLflow's UI",
        description="Serve MLflow's UI on the configured store, on this machine only, until Ctrl-C. Opens a browser if "
        "started in a terminal on a machine with a display.",
        epilog="example: kd ui --port 5001 --no-open",
    )  # fmt: skip
    ui.add_argument("overrides", nargs="*", metavar="override", help="as for kd train: tracking.experiment=mine")
    ui.add_argument("--port", type=int, default=5000, help="the port to listen on (default: 5000)")
    ui.add_argument("--open", action=argparse.BooleanOptionalAction, help="open a browser, or do not")


def _ui(arguments: argparse.Namespace) -> None:
    from kd import tracking
    from kd.config.compose import compose
    from kd.config.read import read

    settings = read(compose(arguments.overrides), look_at_data=False)
    store = tracking.Store.of(settings.tracking, settings.root)
    sys.exit(tracking.serve(store, arguments.port, arguments.open))
