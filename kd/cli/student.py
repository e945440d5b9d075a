"""What a finished student is good for: `kd export`, `kd predict`, `kd bench-model`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from kd.cli.verb import add_verb
from kd.errors import ConfigError


def add_export(verbs: Any) -> None:
    export = add_verb(
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


def _export(arguments: argparse.Namespace) -> None:
    _at_least("--tolerance", arguments.tolerance, 0)
    from kd import deploy
    from kd.deploy import export  # heavy: torch, onnx

    formats = tuple(name.strip() for name in arguments.format.split(",") if name.strip())
    wanted = export.Wanted(formats, arguments.fp16, arguments.int8)
    deploy.export_run(arguments.run, wanted, arguments.out, arguments.tolerance)


def add_predict(verbs: Any) -> None:
    predict = add_verb(
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


def _predict(arguments: argparse.Namespace) -> None:
    _at_least("--batch", arguments.batch, 1)
    from kd import deploy  # heavy: torch

    if not deploy.predict_pictures(
        arguments.run, arguments.images, arguments.out, arguments.kind, arguments.flips, arguments.batch,
        arguments.device, arguments.overwrite,
    ):  # fmt: skip
        sys.exit(1)


def add_bench_model(verbs: Any) -> None:
    bench = add_verb(
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
