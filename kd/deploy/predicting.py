"""`kd predict`: what a run's network says of pictures, told as it goes on."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kd.deploy import predictor
from kd.deploy.finished import Finished, device_of, find
from kd.errors import DataError, shown
from kd.networks.precision import Precision, hold_memory
from kd.run import console
from kd.system.terminal import can_move


def predict_pictures(
    path: Path, images: Path, out: Path, kind: predictor.Kind, flips: str, batch: int, device: str, overwrite: bool
) -> bool:
    """Write what a run's network says of pictures; False where some could not be read. Tells what it does."""
    run, place = find(path), device_of(device)
    if place.type == "cpu":
        hold_memory()
    precision = Precision(place)
    classes = run.network.classes
    style = predictor.Style(kind, classes, run.mask_values, _colours(run) if kind == "overlays" else None)
    names = predictor.listed(images, out)
    home = images.parent if images.is_file() else images
    jobs = [(home / name, out / target) for name, target in predictor.outputs(names, style.suffix).items()]
    _check_apart(jobs, out)
    left = jobs if overwrite else [job for job in jobs if not job[1].exists()]
    if len(left) < len(jobs):
        console.say(f"predict  {len(jobs) - len(left)} of {len(jobs)} are there already; --overwrite makes them anew")
    network = precision.place(run.network)
    tally, started = predictor.Tally(), time.perf_counter()
    working = predictor.Predictor(network, run.image_size, precision, style, flips)
    for _ in _shown(working.run(left, batch, min(8, os.cpu_count() or 1), tally), len(left)):
        pass
    seconds = time.perf_counter() - started
    if tally.written:
        alone = tally.written / tally.network_seconds
        console.say(
            f"predict  {tally.written} {kind} in {seconds:.1f} s: {tally.written / seconds:.1f} images/s, the network "
            f"alone {alone:.1f}: {out}"
        )
    for error in tally.failures:
        console.say(f"error: {error}")
    return not tally.failures


def _colours(run: Finished) -> Any:
    from kd.run.plots import class_colours  # heavy: matplotlib

    return class_colours(len(run.network.class_names))


def _check_apart(jobs: list[tuple[Path, Path]], out: Path) -> None:
    """Refuse to write over a picture that is read."""
    pictures = {picture.resolve() for picture, _ in jobs}
    for _, target in jobs:
        if target.resolve() in pictures:
            raise DataError(f"-o {shown(out)}: {shown(target)} is one of the pictures; give another folder")


def _shown(steps: Iterator[int], total: int) -> Iterator[int]:
    """The same steps with a bar on a terminal, elsewhere with a line every ten seconds."""
    done, told = 0, time.monotonic()
    with Progress(console=console.console, disable=not can_move(console.console), transient=True) as progress:
        task = progress.add_task("predicting", total=total)
        for step in steps:
            done += step
            progress.advance(task, step)
            if progress.disable and time.monotonic() - told > 10:
                told = time.monotonic()
                console.say(f"predict  {done} of {total}")
            yield step
