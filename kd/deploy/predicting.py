"""`kd predict`: a run's network applied to images, with progress."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kd.data.layout.listing import counted
from kd.deploy import predictor
from kd.deploy.finished import Finished, device_of, find
from kd.deploy.provenance import mark_of
from kd.deploy.style import Kind, Style
from kd.errors import DataError, shown
from kd.networks.precision import Precision, hold_memory
from kd.run import console
from kd.system.files import alone_in, clear_leftovers, digest
from kd.system.resources import cores
from kd.system.terminal import can_move

QUIET = 10  # seconds between two lines of progress where there is no terminal
Jobs = list[tuple[Path, Path]]  # (image, output) pairs


def predict_pictures(path: Path, images: Path, out: Path, wanted: predictor.Wanted, device: str) -> bool:
    """Predict the images in a file or folder and print progress; returns whether all of them could be read."""
    run, place = find(path), device_of(device)
    if place.type == "cpu":
        hold_memory()
    precision = Precision(place)
    colours = _colours(run, wanted.kind)
    style = Style(wanted.kind, run.network.classes, run.mask_values, colours, run.mask_palette)
    network = precision.place(run.network)
    files = [digest(file) for file in (run.weights, run.weights.with_suffix(".json")) if file.exists()]
    working = predictor.Predictor(network, run.sizing, precision, style, wanted.flips, files)
    jobs = _jobs(images, out, working, wanted.overwrite)
    with alone_in(out) as alone:
        for folder in {target.parent for _, target in jobs} if alone else ():
            clear_leftovers(folder)
        tally = _predict(working, jobs, wanted, out)
    for error in tally.failures:
        console.say(f"error: {error}")
    return not tally.failures


def _predict(working: predictor.Predictor, jobs: Jobs, wanted: predictor.Wanted, out: Path) -> predictor.Tally:
    tally, started = predictor.Tally(), time.perf_counter()
    for _ in _progress(working.run(jobs, wanted.batch, min(8, cores()), tally), len(jobs)):
        pass
    if tally.written:
        _say_speed(tally, time.perf_counter() - started, wanted.kind, out)
    return tally


def _jobs(images: Path, out: Path, working: predictor.Predictor, overwrite: bool) -> Jobs:
    """The images to predict, each with its output; without `overwrite` those whose output exists are skipped."""
    found = predictor.listed(images, out, predictor.suffixes(working.network.pixels))
    _say_passed_over(found)
    home = images.parent if images.is_file() else images
    jobs = [
        (home / name, out / target) for name, target in predictor.outputs(found.images, working.style.suffix).items()
    ]
    _check_apart(jobs, out)
    done = [] if overwrite else [job for job in jobs if job[1].exists()]
    _check_maker(done, working, out)
    if done:
        console.say(f"predict  skipped {len(done)} of {len(jobs)} that exist; --overwrite repeats them")
    return [job for job in jobs if overwrite or not job[1].exists()]


def _say_passed_over(found: predictor.Listed) -> None:
    if found.others:
        console.say(f"predict  not read: {counted(found.others)}")
    if found.links:
        more = f" (and {len(found.links) - 1} more)" if len(found.links) > 1 else ""
        first = shown(found.links[0])
        console.say(f"predict  not entered: {first}{more}, a link to a folder; predict it by its own path")


def _check_maker(done: Jobs, working: predictor.Predictor, out: Path) -> None:
    """Raise DataError unless existing outputs are what this network would make of these pictures."""
    others = [target for picture, target in done if mark_of(target) != working.mark(picture)]
    if others:
        raise DataError(
            f"-o {shown(out)}: {shown(others[0])} exists and was not made by this network from this picture with these "
            f"options ({len(others)} of {len(done)} files there): give another folder, or replace them by --overwrite"
        )


def _colours(run: Finished, kind: Kind) -> Any:
    if kind != "overlays":
        return None
    from kd.run.predictions import class_colours  # heavy: matplotlib

    return class_colours(len(run.network.class_names))


def _check_apart(jobs: Jobs, out: Path) -> None:
    """Raise DataError if an output would overwrite an image that is read."""
    pictures = {os.path.realpath(picture) for picture, _ in jobs}  # unlike Path.resolve, it takes a loop of links
    for _, target in jobs:
        if os.path.realpath(target) in pictures:
            raise DataError(f"-o {shown(out)}: {shown(target)} is one of the images; give another folder")


def _say_speed(tally: predictor.Tally, seconds: float, kind: Kind, out: Path) -> None:
    console.say(
        f"predict  {tally.written} {kind} in {seconds:.1f} s ({_speed(tally.written, seconds)}; network alone "
        f"{_speed(tally.written, tally.network_seconds)}): {out}"
    )


def _speed(images: int, seconds: float) -> str:
    """Images per second, or seconds per image where that is slow."""
    return f"{images / seconds:.1f} images/s" if images >= seconds else f"{seconds / images:.1f} s an image"


def _progress(steps: Iterator[int], total: int) -> Iterator[int]:
    """Pass steps through and show a bar on a terminal, or a line every QUIET seconds elsewhere."""
    done, last = 0, time.monotonic()
    with Progress(console=console.console, disable=not can_move(console.console), transient=True) as progress:
        task = progress.add_task("predicting", total=total)
        for step in steps:
            done += step
            progress.advance(task, step)
            if progress.disable and time.monotonic() - last > QUIET:
                last = time.monotonic()
                console.say(f"predict  {done} of {total}")
            yield step
