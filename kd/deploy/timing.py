"""`kd bench-model`: latency of teacher, student and exported files on this machine, timed in turn."""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from rich.table import Table

from kd.data.files.pixels import USUAL, Pixels
from kd.data.source import SIDE
from kd.deploy import export
from kd.deploy.exporting import export_record
from kd.deploy.finished import LONGEST_SIDE, Finished, device_of, find
from kd.errors import ConfigError, ModelError
from kd.networks import build
from kd.networks.cost import seconds_in_turn
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.networks.sizes import takes
from kd.networks.spec import find_weights, read_spec
from kd.run import console
from kd.run.folder import SavedRun
from kd.settings import NetworkSettings
from kd.system.environment import processor
from kd.system.untrusted import UnreadableError, is_regular, mapping_at

WARM_UP = 3  # rounds that are not measured


@dataclass(frozen=True)
class Contestant:
    """A function from a batch of images to logits, with its size and quality."""

    name: str
    predict: Callable[[np.ndarray], Any]
    parameters: int | None = None
    file_bytes: int | None = None
    miou: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        low, middle, high = np.percentile(seconds, [10, 50, 90]) * 1000
        return cls(float(middle), float(low), float(high))


def bench(
    path: Path, batch: int, rounds: int, threads: int | None, device: str, size: str | None, as_json: bool
) -> None:
    """Time teacher, student and exported files, and print a table or JSON."""
    run = find(path)
    image_size = _size(size) if size else run.image_size
    if threads:
        torch.set_num_threads(threads)
    threads, precision = torch.get_num_threads(), Precision(device_of(device))
    if size:
        _check_size(size, image_size, run)
    contestants = list(_contestants(run, precision, threads))
    batches = sorted({1, batch})
    seconds = measured(contestants, batches, image_size, rounds, run.network.pixels)
    rows = [
        {
            "name": each.name,
            "batch": count,
            **asdict(Latency.of(seconds[each.name, count])),
            "times_faster": times_faster(seconds[contestants[0].name, count], seconds[each.name, count]),
            "file_bytes": each.file_bytes,
            "parameters": each.parameters,
            **(each.miou or {}),
        }
        for count in batches
        for each in contestants
    ]
    where = {"processor": processor(), "device": str(precision.device), "threads": threads, "rounds": rounds,
             "image_size": list(image_size), "torch": torch.__version__}  # fmt: skip
    if as_json:
        print(json.dumps({**where, "rows": rows}, indent=2))
        return
    console.show(_speeds(rows, where))
    console.show(_sizes(rows))


def measured(
    contestants: Sequence[Contestant], batches: Sequence[int], size: tuple[int, int], rounds: int,
    pixels: Pixels = USUAL,
) -> dict[tuple[str, int], list[float]]:  # fmt: skip
    """Seconds of each (contestant, batch size) in each round, on noise, since content does not matter."""
    images = {batch: pixels.noise(batch, size) for batch in batches}
    calls = {(each.name, batch): partial(each.predict, images[batch]) for batch in batches for each in contestants}
    return seconds_in_turn(calls, rounds, WARM_UP)


def times_faster(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the rounds of slow / fast."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def torch_predict(network: Network, precision: Precision) -> Callable[[np.ndarray], Any]:
    """A network as a function from numpy to numpy, as the exported files are."""
    placed = precision.place(network).eval()

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), precision.autocast():
            return placed(torch.from_numpy(images).to(precision.device)).float().cpu().numpy()

    return predict


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    sides = [int(side) for side in found.groups()] if found else [0, 0]
    if not all(0 < side <= LONGEST_SIDE and side % SIDE == 0 for side in sides):
        raise ConfigError(f"--size={text} should be height x width in pixels, multiples of {SIDE}, for example 256x320")
    return sides[0], sides[1]


def _check_size(typed: str, image_size: tuple[int, int], run: Finished) -> None:
    """Raise ConfigError if the student or its teacher takes one size alone, and another was asked for."""
    for network in filter(None, (run.network, _teacher(run))):
        if not takes(network, image_size):
            height, width = run.image_size
            raise ConfigError(
                f"--size={typed}: {network.settings.encoder} does not take it; leave --size out for {height}x{width}, "
                "that of the training"
            )


def _contestants(run: Finished, precision: Precision, threads: int) -> Iterator[Contestant]:
    """The teacher (if the run says which), the student, and its ONNX files."""
    try:
        summary = SavedRun(run.folder).summary()
    except UnreadableError:
        summary = {}
    if (teacher := _teacher(run)) is not None:
        figures = mapping_at(summary, "teacher")
        yield Contestant(
            "teacher", torch_predict(teacher, precision), teacher.count_parameters(),
            _number(figures.get("file_bytes")), _quality(figures),
        )  # fmt: skip
    size, own = run.network.count_parameters(), _quality(mapping_at(summary, "student"))
    predict = torch_predict(run.network, precision)
    yield Contestant(run.weights.stem, predict, size, run.weights.stat().st_size, own)
    written = export_record(run, run.folder / "export")["files"]
    for name, title in (("", "ONNX"), (".fp16", "ONNX fp16"), (".int8", "ONNX int8")):
        file = run.folder / "export" / f"{run.weights.stem}{name}.onnx"
        if file.name in written and is_regular(run.folder, f"export/{file.name}"):
            measured = mapping_at(mapping_at(written, file.name), "quality")
            quality = {split: _number(mapping_at(measured, split).get("int8")) for split in measured}
            session = export.Session(file, threads)
            yield Contestant(title, session, size, file.stat().st_size, quality or (own if not name else None))


def _teacher(run: Finished) -> Network | None:
    """The teacher named in the run's configuration, with random weights, which are as fast as its own.

    None if the configuration does not tell: its file is gone, or it is a foreign network.
    """
    if run.weights.stem == "teacher":
        return None
    try:
        chosen = NetworkSettings(**{**run.config["backbone"]["teacher"], "weights": None})
        if path := run.config.get("teacher", {}).get("path"):  # the network in that file, not backbone.teacher
            spec = read_spec(find_weights(Path(path), "teacher.path"))
            chosen = NetworkSettings(arch=spec.arch, encoder=spec.encoder, decoder_channels=spec.decoder_channels)
    except (KeyError, TypeError, AttributeError, ValidationError, ModelError):  # of another version, or gone
        return None
    student = run.network
    network = build.build(chosen, student.classes, student.class_names, "backbone.teacher", student.pixels)
    return network.eval().requires_grad_(False)


def _quality(figures: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _number(figures[name]) for name in ("val/miou", "test/miou") if name in figures}


def _number(value: Any) -> Any:
    """A number from a file; None if it is anything else."""
    return value if isinstance(value, int | float) else None


def _speeds(rows: list[dict[str, Any]], where: Mapping[str, Any]) -> Table:
    """A row for each contestant and batch size."""
    height, width = where["image_size"]
    title = (
        f"{where['processor']}, {where['device']}, {where['threads']} thread(s), {height} x {width}, {where['rounds']} "
        f"rounds, torch {where['torch']}"
    )
    table = _of_columns(title, ("batch", "ms", "p10 - p90", "images/s", "times faster"))
    for row in rows:
        table.add_row(
            row["name"], str(row["batch"]), f"{row['median']:.1f}", f"{row['p10']:.1f} - {row['p90']:.1f}",
            f"{row['batch'] / row['median'] * 1000:.1f}", f"{row['times_faster']:.2f}",
        )  # fmt: skip
    return table


def _sizes(rows: list[dict[str, Any]]) -> Table:
    """A row for each contestant: what does not depend on the batch size. Apart, so that both fit 80 columns."""
    table = _of_columns("size and quality", ("MB", "parameters", "mIoU val", "mIoU test"))
    for row in {row["name"]: row for row in rows}.values():
        table.add_row(
            row["name"], "-" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.1f}",
            f"{row['parameters']:,d}", console.figure(row.get("val/miou")), console.figure(row.get("test/miou")),
        )  # fmt: skip
    return table


def _of_columns(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    return table
