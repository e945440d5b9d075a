"""The output of `kd check`: a data set's splits, the balance of its classes, and a line for each problem."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from kd.data.checks.check import Report, Split
from kd.data.checks.inspection import InspectedSample, Problem
from kd.data.layout.naming import UNLABELLED
from kd.errors import shown
from kd.system.terminal import can_move

MAX_LINES = 20  # for problems of one kind
RARE_FOREGROUND = 0.1  # of pixels: a mean over background and so little foreground says nothing about the foreground
MAX_NAMED = 3  # sizes or formats of a split


def watched(samples: Iterable[InspectedSample], total: int) -> Iterable[InspectedSample]:
    """The same samples, with a transient progress bar on a terminal."""
    console = Console(stderr=True)
    return track(samples, "reading", total, console=console, disable=not can_move(console), transient=True)


def show(report: Report) -> None:
    """Print the report for people."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for name, split in report.splits.items():
        console.print(_outline(name, split, "pair"))
    if report.unlabelled.pairs:
        console.print(_outline(UNLABELLED, report.unlabelled, "picture"))
    if any(split.classes for split in report.splits.values()):
        console.print(_balance(report.splits))
    if report.statistics:
        console.print(f"statistics of train, by channel, in stored values: {report.statistics.options}")
    if hint := _foreground_hint(report.splits.get("train")):
        console.print(f"hint: {hint}")
    for severity, problems in (("error", report.errors), ("warning", report.warnings)):
        for line in _lines(problems):
            console.print(f"{severity}: {line}")
    pairs = sum(split.pairs for split in report.splits.values())
    without = report.unlabelled.pairs
    more = f"{_count(without, 'picture')} without masks, " if without else ""
    console.print(f"{_count(pairs, 'pair')}, {more}{_verdict(report)}")


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain containers; `share` is the fraction of valid pixels, `file` is relative to the root."""
    return {
        "splits": {name: _split_as_json(split) for name, split in report.splits.items()},
        "unlabelled": {
            "pictures": report.unlabelled.pairs,
            "sizes": dict(report.unlabelled.sizes),
            "images": dict(report.unlabelled.images),
        },
        "statistics": report.statistics and report.statistics.facts(),
        "errors": [problem._asdict() for problem in report.errors],
        "warnings": [problem._asdict() for problem in report.warnings],
    }


def _split_as_json(split: Split) -> dict[str, Any]:
    plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(split).items()}
    classes = {name: {**figures, "share": split.share(name)} for name, figures in split.classes.items()}
    return plain | {"classes": classes}


def _outline(name: str, split: Split, what: str) -> str:
    parts = [f"{name:<5} {_count(split.pairs, what)}"]
    for title, counter in (("", split.sizes), ("images ", split.images), ("masks ", split.masks)):
        if counter:
            parts.append(title + _most_common(counter))
    if split.only_background:
        parts.append(f"{_count(split.only_background, 'mask')} with only {shown(next(iter(split.classes)))}")
    return "  ".join(parts)


def _most_common(counter: Counter[str]) -> str:
    named = ", ".join(f"{value} ({count})" for value, count in counter.most_common(MAX_NAMED))
    return named + (f" and {len(counter) - MAX_NAMED} more" if len(counter) > MAX_NAMED else "")


def _balance(splits: dict[str, Split]) -> Table:
    """A row per class: its share of each split's valid pixels, and the number of images with it."""
    table = Table(title="share of valid pixels, images with the class", title_justify="left")
    table.add_column("")
    filled = {name: split for name, split in splits.items() if split.classes}
    for name in filled:
        table.add_column(name, justify="right")
        table.add_column("images", justify="right")
    for label in next(iter(filled.values())).classes:
        cells = ((f"{split.share(label):.2%}", str(split.classes[label]["images"])) for split in filled.values())
        table.add_row(shown(label), *(cell for pair in cells for cell in pair))
    if any(split.void for split in filled.values()):
        table.add_row("void, of all", *(cell for split in filled.values() for cell in (_void_share(split), "")))
    return table


def _foreground_hint(split: Split | None) -> str:
    """What to do where the foreground of binary data is rare; else empty."""
    if split is None or len(split.classes) != 2:
        return ""
    name, share = list(split.classes)[1], split.share(list(split.classes)[1])
    if not 0 < share <= RARE_FOREGROUND:
        return ""
    return f"{shown(name)} is rare ({share:.1%} of the pixels): choose by it, objective=val/iou/{shown(name)}"


def _void_share(split: Split) -> str:
    valid = sum(figures["pixels"] for figures in split.classes.values())
    return f"{split.void / max(1, split.void + valid):.2%}"


def _lines(problems: Iterable[Problem]) -> Iterator[str]:
    """The messages, grouped by kind, at most `MAX_LINES` per kind."""
    for _, alike in groupby(sorted(problems, key=lambda problem: problem.kind), key=lambda problem: problem.kind):
        lines = [problem.message for problem in alike]
        yield from lines[:MAX_LINES]
        if len(lines) > MAX_LINES:
            yield f"and {len(lines) - MAX_LINES} more of this kind (--json lists all)"


def _verdict(report: Report) -> str:
    if not report.errors and not report.warnings:
        return "no problems"
    return f"{_count(len(report.errors), 'error')}, {_count(len(report.warnings), 'warning')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
