"""The console command `kd`: a look at a run before it starts, at its data, and at a study. `train.py` trains."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd.composition import compose, project_root
from kd.config import block_count, read
from kd.mistakes import one_line_errors
from kd.timeline import EpochPlan, Timeline


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = _parser().parse_args(argv)
    with one_line_errors():
        arguments.verb(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb")
    for add in (_add_preview, _add_study, _add_report, _add_check, _add_sync, _add_ui, _add_cache):
        add(verbs)
    return parser


def _add_verb(
    verbs: Any, name: str, verb: Callable[[argparse.Namespace], None], **said: str
) -> argparse.ArgumentParser:
    """A parser whose arguments `verb` is called with; `said` are its help, description and epilog."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, **said)
    parser.set_defaults(verb=verb)
    return parser


def _add_preview(verbs: Any) -> None:
    preview = _add_verb(
        verbs, "preview", _preview,
        help="print the plan of a run, epoch by epoch",
        description="Print the plan of a run: temperature, open encoder blocks and learning rates of each epoch.",
        epilog="example: kd preview schedule=cosine unfreeze.rate=3 trainer.epochs=50",
    )  # fmt: skip
    preview.add_argument(
        "overrides", nargs="*", metavar="override", help="as for train.py: schedule=cosine unfreeze.rate=3"
    )
    preview.add_argument("--json", action="store_true", help="print a list with one object per epoch")
    preview.add_argument("--png", type=Path, metavar="FILE", help="draw the plan")


def _add_study(verbs: Any) -> None:
    study = _add_verb(
        verbs, "study", _study,
        help="show a study: best trials, what mattered, what pruning saved, against a study without teacher",
        description="Show a study as it stands, and bring its table, recipe and plots up to date.",
        epilog="example: kd study temperature_unfreeze --against no_teacher",
    )  # fmt: skip
    study.add_argument("name", nargs="?", help="the study; without it, all studies are listed")
    study.add_argument("--against", metavar="STUDY", help="set beside it (default: no_teacher, where there is one)")
    study.add_argument("--storage", metavar="URL", help="the database (default: KD_STORAGE, else the one under runs/)")
    study.add_argument("--no-files", action="store_true", help="print only; leave the study's folder as it is")


def _add_report(verbs: Any) -> None:
    report = _add_verb(
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


def _add_check(verbs: Any) -> None:
    check = _add_verb(
        verbs, "check", _check,
        help="read all data and list everything that is wrong with it",
        description="Read every pair of every split; list all problems, sizes and the balance of the classes. Exits "
        "with 1 where training would stop at something, or be misled by it; warnings do not count.",
        epilog="example: kd check data=folder data.root=~/pictures",
    )  # fmt: skip
    check.add_argument("overrides", nargs="*", metavar="override", help="as for train.py: data=folder data.root=...")
    check.add_argument("--headers", action="store_true", help="read no pixels: pairs, formats and sizes only, fast")
    check.add_argument("--json", action="store_true", help="print the whole report as JSON")


def _add_sync(verbs: Any) -> None:
    sync = _add_verb(
        verbs, "sync", _sync,
        help="deliver runs to MLflow: what it did not take while they went on",
        description="Deliver run folders to MLflow: what is missing there is sent, and nothing twice.",
        epilog="example: kd sync runs/2026-11-21/08-00-00-000000",
    )  # fmt: skip
    sync.add_argument("folders", nargs="+", type=Path, metavar="run_folder", help="a folder that a run has left")


def _add_ui(verbs: Any) -> None:
    ui = _add_verb(
        verbs, "ui", _ui,
        help="MLflow's pages on the runs of this project",
        description="Start MLflow's pages on the store of the configuration, for this machine alone, until Ctrl-C.",
        epilog="example: kd ui --port 5001",
    )  # fmt: skip
    ui.add_argument("overrides", nargs="*", metavar="override", help="as for train.py: tracking.experiment=mine")
    ui.add_argument("--port", type=int, default=5000, help="where the browser finds them (default: 5000)")


def _add_cache(verbs: Any) -> None:
    cache = _add_verb(
        verbs, "cache", _cache,
        help="list what is kept below runs/cache: teachers' answers, decoded samples; verify or delete it",
        description="List what is kept below runs/cache: teachers' answers, decoded samples, teachers' figures.",
        epilog="example: kd cache prune --keep-gb 10",
    )  # fmt: skip
    what = cache.add_subparsers(metavar="verify or prune")
    _add_verb(
        what, "verify", _cache_verify,
        help="read all of it, and empty what is damaged",
        description="Read all of it. What is damaged is emptied, so that it is computed again; exits with 1 then.",
    )  # fmt: skip
    prune = _add_verb(
        what, "prune", _cache_prune,
        help="delete some of it, or all",
        description="Delete entries. Runs that are at work on them go on, and make again what they miss.",
        epilog="example: kd cache prune --older-than 30 --keep-gb 10",
    )  # fmt: skip
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="what was not used for so many days")
    prune.add_argument("--keep-gb", type=float, metavar="GB", help="least recently used first, until so much is left")
    prune.add_argument("--all", action="store_true", help="everything")


def _preview(arguments: argparse.Namespace) -> None:
    settings = read(compose(arguments.overrides), look_at_data=False)
    timeline = settings.timeline(block_count(settings.backbone.student))
    if arguments.png:
        from kd.plots import draw_timeline  # heavy: matplotlib

        draw_timeline(timeline, arguments.png)
    if arguments.json:
        json.dump([_as_json(plan) for plan in timeline], sys.stdout, indent=2)
        print()
    else:
        _print_table(timeline)


def _study(arguments: argparse.Namespace) -> None:
    from kd import study_folder  # heavy: optuna, matplotlib

    study_folder.show(arguments.name, arguments.against, arguments.storage, write_files=not arguments.no_files)


def _report(arguments: argparse.Namespace) -> None:
    from kd.report import report  # heavy: torch, matplotlib

    report(arguments.names, arguments.output, arguments.storage, arguments.open)


def _check(arguments: argparse.Namespace) -> None:
    from kd import data_report
    from kd.data.check import check

    source = read(compose(arguments.overrides), look_at_data=False).data
    report = check(source, arguments.headers, watch=data_report.watched)
    if arguments.json:
        json.dump(data_report.as_json(report), sys.stdout, indent=2)
        print()
    else:
        data_report.show(report)
    if report.errors:
        sys.exit(1)


def _sync(arguments: argparse.Namespace) -> None:
    from kd import tracking

    for folder in arguments.folders:
        sent = tracking.sync(folder, project_root())
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(sent.items()))
        print(f"sync     {folder}: {f'sent {told}' if told else 'nothing was missing'}", flush=True)


def _ui(arguments: argparse.Namespace) -> None:
    from kd import tracking

    settings = read(compose(arguments.overrides), look_at_data=False)
    store = tracking.Store(
        tracking.store_uri(settings.tracking, settings.root), settings.tracking.experiment, settings.root
    )
    sys.exit(tracking.serve(store, arguments.port))


def _cache(arguments: argparse.Namespace) -> None:
    from kd import cache_folder

    cache_folder.show(_cache_root())


def _cache_verify(arguments: argparse.Namespace) -> None:
    from kd import cache_folder

    if not cache_folder.verify(_cache_root()):
        sys.exit(1)


def _cache_prune(arguments: argparse.Namespace) -> None:
    from kd import cache_folder

    cache_folder.prune(_cache_root(), arguments.older_than, arguments.keep_gb, arguments.all)


def _cache_root() -> Path:
    return project_root() / "runs" / "cache"


def _as_json(plan: EpochPlan) -> dict[str, object]:
    return {
        "epoch": plan.epoch,
        "temperature": plan.temperature,
        "unfrozen_blocks": plan.unfrozen_blocks,
        "lr": {"decoder": plan.lr_decoder, "encoder": plan.lr_encoder},
    }


def _print_table(timeline: Timeline) -> None:
    """A row per number of open blocks; epochs are counted from 0."""
    rows = [("epochs", "temperature", "open blocks", "what trains", "lr decoder", "lr encoder")]
    for phase in timeline.phases():
        first, last = phase[0], phase[-1]
        opened = first.unfrozen_blocks
        rows.append(
            (
                _span(f"{first.epoch}", f"{last.epoch}", "-"),
                _span(f"{first.temperature:.2f}", f"{last.temperature:.2f}"),
                f"{opened} of {timeline.blocks}",
                _what_trains(opened, timeline.blocks),
                _span(f"{first.lr_decoder:.1e}", f"{last.lr_decoder:.1e}"),
                _span(f"{first.lr_encoder:.1e}", f"{last.lr_encoder:.1e}") if opened else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _span(first: str, last: str, between: str = " -> ") -> str:
    return first if first == last else f"{first}{between}{last}"


def _what_trains(opened: int, blocks: int) -> str:
    if opened == 0:
        return "decoder"
    if opened == blocks:
        return "everything"
    return "decoder + deepest block" if opened == 1 else f"decoder + {opened} deepest blocks"
