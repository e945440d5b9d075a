"""`make bench`: what distilling costs, against the student alone, a loop written by hand and a stock sweeper.

Prints one table and writes benchmarks/results.json, after each section anew, so that a bench which is ended early loses
nothing; the README's figures follow it at the end. Ratios are medians over rounds in which everybody had a turn
(`benchmarks.rounds`).

    python -m benchmarks.bench
    python -m benchmarks.bench --only steps,pipeline --data folder my_data 'data.mask_values=[0,255]'
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import costs, growth, machine, pipeline, report, steps, study
from benchmarks.case import SIZES, Case, Sizes, folder_of
from kd.config.compose import PROJECT
from kd.errors import UserError
from kd.system.files import write_json

RESULTS, README = Path(__file__).with_name("results.json"), PROJECT / "README.md"
Say = Callable[[str], None]

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Measuring:
    """What the sections are given: the sizes, and a configuration that names the data."""

    def __init__(self, name: str, sizes: Sizes, overrides: list[str], say: Say) -> None:
        self.name, self.sizes, self.overrides, self.say = name, sizes, overrides, say

    def case(self) -> Case:
        return Case.of(self.sizes, self.overrides)


def _equal(on: Measuring) -> dict[str, Any]:
    """Small trainings to their end, of two seeds, the encoder unfrozen block by block."""
    plan = [f"trainer.epochs={on.sizes.epochs}", "unfreeze.start_epoch=1", "unfreeze.rate=1"]
    if on.sizes.quick:
        return {"equal_metrics": steps.equal_metrics([Case.of(on.sizes, [*on.overrides, *plan])])}
    small = replace(on.sizes, image_size=64, steps=12, batch=8)
    with folder_of(small) as overrides:
        cases = [Case.of(small, [*overrides, *plan, f"seed={seed}"]) for seed in on.sizes.seeds[:2]]
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
    found = json.loads(asked.out.read_text()) if asked.only and asked.out and asked.out.exists() else {}
    name = "quick" if asked.quick else "cuda" if torch.cuda.is_available() else "full"
    sizes = replace(SIZES[name], rounds=asked.rounds or SIZES[name].rounds)
    own = Path(asked.data[1]) if asked.data[0] == "folder" else None
    with folder_of(sizes, own, tuple(asked.data[2 if own else 1 :])) as overrides:
        for section in asked.only or SECTIONS:
            found |= {"machine": machine.facts(), "versions": machine.versions()}
            busy, begun = machine.busy(), time.monotonic()
            on = Measuring(name, sizes, overrides, lambda line, section=section: console.print(f"{section:<9} {line}"))
            on.say("...")
            found |= SECTIONS[section](on)
            seconds = round(time.monotonic() - begun, 1)
            how = {"seconds": seconds, "busy_before": busy, "data": asked.data[0], "sizes": vars(on.sizes)}
            found.setdefault("sections", {})[section] = how
            if asked.out:
                write_json(asked.out, found)
            if asked.out == RESULTS:
                report.write_readme(README, "speed", report.in_readme(found))
    console.print(report.table(found))


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_sections, help=f"some of {','.join(SECTIONS)}; the others' figures stay")
    parser.add_argument("--quick", action="store_true", help="as small as it can be: figures that mean nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often each has its turn ({SIZES['full'].rounds})")
    parser.add_argument("--data", nargs="+", default=["shapes"], metavar="DATA",
                        help="shapes (built in), or folder <root> and settings of it")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where to write (benchmarks/results.json; nowhere if --quick)")
    asked = parser.parse_args(arguments)
    asked.out = asked.out or (None if asked.quick else RESULTS)
    if asked.data[0] not in ("shapes", "folder") or (asked.data[0] == "folder" and len(asked.data) < 2):
        parser.error(f"--data {' '.join(asked.data)}: give shapes, or folder <root>")
    return asked


def _sections(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is no section; choose from {','.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
