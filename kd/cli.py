"""The console command `kd`: a look at a run before it starts, at its data, and at a study. `train.py` trains."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd.composition import compose, project_root
from kd.config import block_count, read
from kd.errors import ConfigError
from kd.mistakes import one_line_errors
from kd.terminal import steady_output
from kd.timeline import EpochPlan, Timeline


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    steady_output()
    arguments = _parser().parse_args(argv)
    with one_line_errors():
        arguments.verb(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd",
        description=__doc__,
        epilog="examples: kd preview schedule=cosine | kd check data=folder data.root=my_data | kd ui | "
        "kd study temperature_unfreeze; kd VERB --help has more. python train.py --help shows what can be configured.",
    )
    verbs = parser.add_subparsers(required=True, metavar="verb")
    for add in (
        _add_preview,
        _add_study,
        _add_report,
        _add_check,
        _add_export,
        _add_predict,
        _add_bench_model,
        _add_sync,
        _add_ui,
        _add_cache,
    ):
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


def _add_export(verbs: Any) -> None:
    export = _add_verb(
        verbs, "export", _export,
        help="a run's student as ONNX, torch.export and segmentation-models-pytorch files, each checked",
        description="Write a run's student as files that run without this package. Each is compared with the network "
        "on images of the validation split, and is there only if it answers the same.",
        epilog="example: kd export runs/2026-11-21/08-00-00-000000 --format onnx --int8",
    )  # fmt: skip
    export.add_argument("run", type=Path, help="a run folder, or a .safetensors with its .json")
    export.add_argument("--format", default="onnx,pt2,smp", help="which of onnx, pt2, smp (default: all)")
    export.add_argument("--fp16", action="store_true", help="ONNX in half precision, too")
    export.add_argument("--int8", action="store_true", help="ONNX in 8 bits, too; its mIoU is measured")
    export.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to (default: export/ in the run folder)")
    export.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="SHARE",
        help="largest difference allowed, as a share of the largest logit (default: 0.001; fp16: 20 times that)",
    )  # fmt: skip


def _add_predict(verbs: Any) -> None:
    predict = _add_verb(
        verbs, "predict", _predict,
        help="what a run's student says of pictures: masks, probabilities or overlays",
        description="Write what a run's student says of each picture, at the picture's own size and under its own "
        "name. What is there already is left out, so that an interrupted command goes on. Exits with 1 where a "
        "picture could not be read; the others are written.",
        epilog="example: kd predict runs/2026-11-21/08-00-00-000000 ~/pictures -o masks",
    )  # fmt: skip
    predict.add_argument("run", type=Path, help="a run folder, or a .safetensors with its .json")
    predict.add_argument("images", type=Path, help="a picture, or a folder of pictures and folders")
    predict.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where to")
    predict.add_argument(
        "--kind", choices=("masks", "probabilities", "overlays"), default="masks",
        help="masks: PNG with the values of the training masks (default); probabilities: 16-bit PNG of the foreground, "
        "or float16 .npy of C x H x W; overlays: JPEG",
    )  # fmt: skip
    predict.add_argument(
        "--flips", nargs="?", const="h", default="", choices=("h", "hv"),
        help="mean probability of the picture and its mirror image (h), or of all four flips (hv)",
    )  # fmt: skip
    predict.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at a time (default: 8)")
    predict.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    predict.add_argument("--overwrite", action="store_true", help="write anew what is there already")


def _add_bench_model(verbs: Any) -> None:
    bench = _add_verb(
        verbs, "bench-model", _bench_model,
        help="time teacher, student and what was exported of it on this machine",
        description="Time teacher, student and what kd export has made of it, in turn, on this machine.",
        epilog="example: kd bench-model runs/2026-11-21/08-00-00-000000 --batch 8 --threads 1",
    )  # fmt: skip
    bench.add_argument("run", type=Path, help="a run folder, or a .safetensors with its .json")
    bench.add_argument("--batch", type=int, default=8, metavar="N", help="beside batch 1 (default: 8)")
    bench.add_argument("--rounds", type=int, default=20, metavar="N", help="in which all have a turn (default: 20)")
    bench.add_argument("--threads", type=int, metavar="N", help="that compute (default: torch's choice)")
    bench.add_argument("--device", default="auto", help="of teacher and student; ONNX Runtime computes on the CPU")
    bench.add_argument("--size", metavar="HxW", help="of the images, multiples of 32 (default: that of the training)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")


def _add_sync(verbs: Any) -> None:
    sync = _add_verb(
        verbs, "sync", _sync,
        help="deliver runs to MLflow: what it did not take while they went on",
        description="Deliver run folders to MLflow: what is missing there is sent, and nothing twice.",
        epilog="example: kd sync runs/2026-11-21/08-00-00-000000",
    )  # fmt: skip
    sync.add_argument("folders", nargs="+", type=Path, metavar="run_folder", help="a folder that a run has left")
    sync.add_argument("--register", metavar="NAME", help="register their students as versions of this model, too")


def _add_ui(verbs: Any) -> None:
    ui = _add_verb(
        verbs, "ui", _ui,
        help="MLflow's pages on the runs of this project",
        description="Start MLflow's pages on the store of the configuration, for this machine alone, until Ctrl-C. "
        "A browser is opened where this is a terminal on a machine with a display.",
        epilog="example: kd ui --port 5001 --no-open",
    )  # fmt: skip
    ui.add_argument("overrides", nargs="*", metavar="override", help="as for train.py: tracking.experiment=mine")
    ui.add_argument("--port", type=int, default=5000, help="where the browser finds them (default: 5000)")
    ui.add_argument("--open", action=argparse.BooleanOptionalAction, help="open a browser, or do not")


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


def _export(arguments: argparse.Namespace) -> None:
    _at_least("--tolerance", arguments.tolerance, 0)
    from kd import deploy, export  # heavy: torch, onnx

    formats = tuple(name.strip() for name in arguments.format.split(",") if name.strip())
    wanted = export.Wanted(formats, arguments.fp16, arguments.int8)
    deploy.export_run(arguments.run, wanted, arguments.out, arguments.tolerance)


def _predict(arguments: argparse.Namespace) -> None:
    _at_least("--batch", arguments.batch, 1)
    from kd import deploy  # heavy: torch

    if not deploy.predict_pictures(
        arguments.run, arguments.images, arguments.out, arguments.kind, arguments.flips, arguments.batch,
        arguments.device, arguments.overwrite,
    ):  # fmt: skip
        sys.exit(1)


def _bench_model(arguments: argparse.Namespace) -> None:
    for name in ("batch", "rounds", "threads"):
        _at_least(f"--{name}", getattr(arguments, name), 1)
    from kd import deploy  # heavy: torch

    deploy.bench(
        arguments.run, arguments.batch, arguments.rounds, arguments.threads, arguments.device, arguments.size,
        arguments.json,
    )  # fmt: skip


def _at_least(option: str, value: float | None, least: int) -> None:
    """Raise ConfigError unless a number is `least` or more."""
    if value is not None and not value >= least:
        raise ConfigError(f"{option}={value:g} must be {least} or more")


def _sync(arguments: argparse.Namespace) -> None:
    from kd import tracking

    for folder in arguments.folders:
        sent = tracking.sync(folder, project_root())
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(sent.items()))
        print(f"sync     {folder}: {f'sent {told}' if told else 'nothing was missing'}", flush=True)
        if name := arguments.register or tracking.wanted_name(folder):
            from kd import deploy  # heavy: torch, onnx

            deploy.register(folder, name, project_root())


def _ui(arguments: argparse.Namespace) -> None:
    from kd import tracking

    settings = read(compose(arguments.overrides), look_at_data=False)
    store = tracking.Store(
        tracking.store_uri(settings.tracking, settings.root), settings.tracking.experiment, settings.root
    )
    sys.exit(tracking.serve(store, arguments.port, arguments.open))


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
