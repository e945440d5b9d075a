"""`make bench`: what distilling costs, against the student alone, a loop written by hand and a stock sweeper.

Prints one table and writes benchmarks/results.json, after each section anew, so that a bench which is ended early loses
nothing. Ratios are medians over rounds in which everybody had a turn (`benchmarks.rounds`).

    python -m benchmarks.bench
    python -m benchmarks.bench --only steps,pipeline --data folder my_data 'data.mask_values=[0,255]'
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import costs, growth, machine, pipeline, steps, study
from benchmarks.case import SIZES, STATES, Case, folder_of
from kd.errors import UserError
from kd.files import write_json

RESULTS = Path(__file__).with_name("results.json")
HIDDEN = ("machine", "versions", "sizes", "seconds_per_step", "sections", "study_sizes", "data")
TITLES = {
    "warm_over_student": "distilling, warm cache / student alone",
    "cold_over_live": "distilling, cold cache / live teacher",
    "live_over_student": "distilling, live teacher / student alone",
    "live_over_parts": "live / (student alone + teacher alone)",
    "epoch_over_steps": "epoch with its loader / its steps",
    "warm_epoch_over_student_epoch": "whole epochs: warm cache / student alone",
    "hand_written_over_warm": "loop by hand / warm cache",
    "hand_written_channels_last_over_warm": "loop by hand, channels last / warm cache",
    "hand_written_over_live": "loop by hand / live teacher",
    "study_speedup": "study: stock sweeper / ours, seconds",
    "study_best": "study: best value",
    "study_seconds": "study: seconds",
    "study_cpu_seconds": "study: CPU seconds",
    "study_epochs": "study: epochs trained",
    "study_workers": "study: workers",
    "equal_metrics": "trained to the end",
    "startup_cpu_seconds": "start, CPU seconds",
    "tracking_share": "checkpoints and MLflow / epoch of 30 s",
    "tracking_seconds": "checkpoints and MLflow, seconds per epoch",
    "images_per_second": "images per second",
    "transforms_us": "microseconds per image",
    "peak_memory_mib": "peak memory, MiB",
    "growth": "growth",
}
Say = Callable[[str], None]

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Measuring:
    """What the sections are given: the sizes, and a configuration that names the data."""

    def __init__(self, sizes: str, overrides: list[str], say: Say) -> None:
        self.name, self.sizes, self.overrides, self.say = sizes, SIZES[sizes], overrides, say

    def case(self) -> Case:
        return Case.of(self.sizes, self.overrides)


def _equal(on: Measuring) -> dict[str, Any]:
    """Small trainings to their end, one for each seed, the encoder opening block by block."""
    plan = [f"trainer.epochs={on.sizes.epochs}", "unfreeze.start_epoch=1", "unfreeze.rate=1"]
    if on.sizes.quick:
        return {"equal_metrics": steps.equal_metrics([Case.of(on.sizes, [*on.overrides, *plan])])}
    small = replace(on.sizes, image_size=64, steps=12, batch=8)
    with folder_of(small) as overrides:
        cases = [Case.of(small, [*overrides, *plan, f"seed={seed}"]) for seed in on.sizes.seeds]
        return {"equal_metrics": steps.equal_metrics(cases)}


SECTIONS: dict[str, Callable[[Measuring], dict[str, Any]]] = {
    "steps": lambda on: steps.measured(on.case(), on.say),
    "startup": lambda on: costs.startup(on.sizes.rounds),
    "tracking": lambda on: costs.tracked(on.case(), on.sizes.rounds),
    "pipeline": lambda on: pipeline.measured(on.case()),
    "equal": _equal,
    "study": lambda on: study.measured(on.sizes, on.say),
    "memory": lambda on: costs.peak_memory(on.overrides, on.name, on.say),
    "growth": lambda on: {"growth": growth.measured(on.sizes, on.say)},
}


def main(arguments: list[str] | None = None) -> None:
    asked = _asked(arguments)
    found = _earlier(asked.out) if asked.only else {}
    name = "quick" if asked.quick else "cuda" if torch.cuda.is_available() else "full"
    own = Path(asked.data[1]) if asked.data[0] == "folder" else None
    with folder_of(SIZES[name], own, tuple(asked.data[2 if own else 1 :])) as overrides:
        for section in asked.only or SECTIONS:
            found |= {"machine": machine.facts(), "versions": machine.versions(), "sizes": vars(SIZES[name])}
            busy, begun = machine.busy(), time.monotonic()
            on = Measuring(name, overrides, lambda line, section=section: console.print(f"{section:<9} {line}"))
            on.say("...")
            found |= SECTIONS[section](on)
            found["data"] = asked.data[0]
            spent = {"seconds": round(time.monotonic() - begun, 1), "busy_before": busy}
            found.setdefault("sections", {})[section] = spent
            write_json(asked.out, found)
    console.print(table(found))
    console.print(f"written to {asked.out}")


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_sections, help=f"some of {','.join(SECTIONS)}; the others' figures stay")
    parser.add_argument("--quick", action="store_true", help="as small as it can be: figures that mean nothing")
    parser.add_argument("--data", nargs="+", default=["shapes"], metavar="DATA",
                        help="shapes (built in), or folder <root> and settings of it")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write")
    asked = parser.parse_args(arguments)
    if asked.data[0] not in ("shapes", "folder") or (asked.data[0] == "folder" and len(asked.data) < 2):
        parser.error(f"--data {' '.join(asked.data)}: give shapes, or folder <root>")
    return asked


def _sections(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is no section; choose from {','.join(SECTIONS)}")
    return names


def _earlier(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def table(found: Mapping[str, Any]) -> Table:
    """Every figure: median, and least to greatest where it was measured in rounds."""
    machine, versions = found["machine"], found["versions"]
    title = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {versions['torch']}"
    shown = Table(title=title, title_justify="left")
    shown.add_column("", no_wrap=True)
    for column in ("", *(f"encoder {state}" for state in STATES)):
        shown.add_column(column, justify="right", no_wrap=True)
    for key in (*TITLES, *(key for key in found if key not in TITLES)):
        if key in found and key not in HIDDEN:
            for row in _rows(TITLES.get(key, key), found[key]):
                shown.add_row(*row)
            shown.add_section()
    return shown


def _rows(name: str, value: Any) -> Iterator[tuple[str, ...]]:
    """A row for a figure, for a pair of them (encoder closed and open), or for each part of a mapping."""
    if not isinstance(value, Mapping) or "median" in value or "applied" in value:
        yield name, _cell(value)
    elif value and set(value) <= set(STATES) and all("median" in (each or {}) for each in value.values()):
        yield name, "", *(_cell(value.get(state)) for state in STATES)
    else:
        for part, each in value.items():
            yield from _rows(f"{name}: {part}" if ":" not in name else f"{name}, {part}", each)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "applied" in value:
        return f"{_figure(value['mean'])} ({_figure(value['applied'])} where applied)"
    if isinstance(value, Mapping):
        return f"{_figure(value['median'])} ({_figure(value['min'])} - {_figure(value['max'])})"
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    return _figure(value)


def _figure(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
