"""Using a finished student: `kd export`, `kd predict`, `kd evaluate`, `kd bench-model`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from kd.cli.verb import add_verb
from kd.errors import ConfigError


def add_export(verbs: Any) -> None:
    export = add_verb(
        verbs, "export", _export,
        help="export a run's student to ONNX, torch.export and segmentation-models-pytorch, each checked",
        description="Export a run's student to files that need no kd-sweeper. Each is compared with the network on "
        "validation images, and kept only if its outputs agree. Exits with 1 if a file failed; the others are written.",
        epilog="example: kd export runs/2026-11-21/08-00-00-000000 --format onnx --int8",
    )  # fmt: skip
    export.add_argument("run", type=Path, help="a run folder, or a .safetensors file with its .json")
    export.add_argument("--format", default="onnx,pt2,smp", help="which of onnx, pt2, smp (default: all)")
    export.add_argument("--fp16", action="store_true", help="also ONNX in half precision")
    export.add_argument("--int8", action="store_true", help="also ONNX in 8 bits, with its mIoU measured")
    export.add_argument("-o", "--out", type=Path, metavar="DIR", help="output folder (default: export/ in the run)")
    export.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="SHARE",
        help="largest difference allowed, as a share of the largest logit (default: 0.001; fp16: 20 times that)",
    )  # fmt: skip


def _export(arguments: argparse.Namespace) -> None:
    _at_least("--tolerance", arguments.tolerance, 0)
    from kd import deploy
    from kd.deploy import export  # heavy: torch, onnx

    formats = tuple(name.strip() for name in arguments.format.split(",") if name.strip())
    wanted = export.Wanted(formats, arguments.fp16, arguments.int8)
    failed = deploy.export_run(arguments.run, wanted, arguments.out, arguments.tolerance)
    for line in dict.fromkeys(map(str, failed)):  # the ONNX files share a conversion, and its error
        print(f"error: {line}", file=sys.stderr)
    if failed:
        sys.exit(1)


def add_predict(verbs: Any) -> None:
    predict = add_verb(
        verbs, "predict", _predict,
        help="write a run's student's predictions for images: masks, probabilities or overlays",
        description="Write the student's prediction for each image, at the image's own size and under its name. A "
        "student that was trained on crops sees the whole image through windows, in tiles if it is a very large TIFF. "
        "Files that the same command has written are skipped, so that it can be repeated if interrupted; others are "
        "refused. Exits with 1 if an image could not be read; the others are written.",
        epilog="example: kd predict runs/2026-11-21/08-00-00-000000 ~/pictures -o masks",
    )  # fmt: skip
    predict.add_argument("run", type=Path, help="a run folder, or a .safetensors file with its .json")
    predict.add_argument("images", type=Path, help="an image, or a folder searched for images with its subfolders")
    predict.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="output folder")
    predict.add_argument(
        "--kind", choices=("masks", "probabilities", "overlays"), default="masks",
        help="masks: PNG with the values of the training masks (default); probabilities: 16-bit PNG of the foreground, "
        "or float16 .npy of C x H x W; overlays: JPEG",
    )  # fmt: skip
    predict.add_argument(
        "--flips", nargs="?", const="h", default="", choices=("h", "hv"),
        help="average probabilities over the image and its mirror image (h), or over all four flips (hv)",
    )  # fmt: skip
    _add_computing(predict)
    predict.add_argument("--overwrite", action="store_true", help="write existing files again")


def _predict(arguments: argparse.Namespace) -> None:
    _at_least("--batch", arguments.batch, 1)
    from kd import deploy  # heavy: torch

    wanted = deploy.Wanted(arguments.kind, arguments.flips, arguments.batch, arguments.overwrite)
    if not deploy.predict_pictures(arguments.run, arguments.images, arguments.out, wanted, arguments.device):
        sys.exit(1)


def add_evaluate(verbs: Any) -> None:
    evaluate = add_verb(
        verbs, "evaluate", _evaluate,
        help="score a run's student, or an ONNX file exported from it, on other pictures with masks",
        description="Score a run's student on pictures with masks: IoU and Dice over a whole split, beside those of a "
        "prediction of one class everywhere. Pictures are brought to the size of the training, unless "
        "--native compares at each picture's own.",
        epilog="example: kd evaluate runs/2026-11-21/08-00-00-000000 data=folder data.root=other_clinic --native",
    )  # fmt: skip
    evaluate.add_argument("run", type=Path, help="a run folder, a .safetensors file with its .json, or export/*.onnx")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="override",
        help="the data, as for kd train: data=folder data.root=...; data.root=... alone changes the run's own",
    )  # fmt: skip
    evaluate.add_argument(
        "--split", choices=("train", "val", "test"), help="default: test, or val if the data has no test"
    )
    evaluate.add_argument("--native", action="store_true", help="compare at each picture's own size")
    _add_computing(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the results as JSON")


def _evaluate(arguments: argparse.Namespace) -> None:
    _at_least("--batch", arguments.batch, 1)
    from kd import deploy  # heavy: torch

    asked = deploy.Question(arguments.overrides, arguments.split, arguments.native, arguments.batch, arguments.device)
    deploy.evaluate_run(arguments.run, asked, arguments.json)


def _add_computing(parser: argparse.ArgumentParser) -> None:
    """Add where a network computes, and how much at a time."""
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="images, or windows, computed together (default: 8)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")


def add_bench_model(verbs: Any) -> None:
    bench = add_verb(
        verbs, "bench-model", _bench_model,
        help="measure the latency of a run's teacher, student and exports on this machine",
        description="Measure the latency of teacher, student and the files of kd export on this machine, interleaved.",
        epilog="example: kd bench-model runs/2026-11-21/08-00-00-000000 --batch 8 --threads 1",
    )  # fmt: skip
    bench.add_argument("run", type=Path, help="a run folder, or a .safetensors file with its .json")
    bench.add_argument("--batch", type=int, default=8, metavar="N", help="batch size, besides 1 (default: 8)")
    bench.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds that time each once (default: 20)")
    bench.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    bench.add_argument("--device", default="auto", help="for teacher and student; ONNX Runtime uses the CPU")
    bench.add_argument("--size", metavar="HxW", help="image size, multiples of 32 (default: that of the training)")
    bench.add_argument("--json", action="store_true", help="print the results as JSON")


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
