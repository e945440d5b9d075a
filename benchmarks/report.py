"""How figures are shown: all of them in a table on the terminal, the main ones in the README."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.case import STATES
from kd.system.files import write_atomically

HIDDEN = ("machine", "versions", "seconds_per_step", "sections", "study_sizes")
TITLES = {
    "warm_over_student": "distilling with cached logits, over training the student alone",
    "cold_over_live": "distilling while the cache is filled, over a live teacher",
    "live_over_student": "distilling with a live teacher, over training the student alone",
    "live_over_parts": "distilling with a live teacher, over student and teacher one after the other",
    "epoch_over_steps": "an epoch with its data loading, over its steps alone",
    "warm_epoch_over_student_epoch": "whole epochs with cached logits, over the student alone",
    "hand_written_over_warm": "a loop written by hand, over distilling with cached logits",
    "hand_written_channels_last_over_warm": "the same in channels-last layout",
    "hand_written_over_live": "a loop written by hand, over a live teacher",
    "study_speedup": "a study by Hydra's stock sweeper, over ours, in time",
    "study_best": "study: best value",
    "study_seconds": "study: seconds",
    "study_cpu_seconds": "study: CPU seconds",
    "study_epochs": "study: epochs trained",
    "equal_metrics": "trained to the end",
    "startup_cpu_seconds": "start, CPU seconds",
    "tracking_share": "checkpoints and MLflow, share of an epoch of 30 s",
    "tracking_seconds": "checkpoints and MLflow, seconds per epoch",
    "images_per_second": "images per second",
    "transforms_us": "microseconds per image",
    "peak_memory_mib": "peak memory, MiB",
    "growth": "growth",
}
IN_README = (
    "warm_over_student", "cold_over_live", "live_over_parts", "epoch_over_steps", "hand_written_over_warm",
    "hand_written_channels_last_over_warm", "study_speedup", "startup_cpu_seconds", "tracking_share",
)  # fmt: skip
Row = tuple[str, ...]  # a title, a figure, and those of a frozen and an unfrozen encoder


def table(found: Mapping[str, Any]) -> Table:
    """Every figure: median, and least to greatest where it was measured in rounds."""
    shown = Table(title=_machine(found), title_justify="left")
    shown.add_column("", no_wrap=True)
    for column in ("", *(f"encoder {state}" for state in STATES)):
        shown.add_column(column, justify="right", no_wrap=True)
    for key in (*TITLES, *(key for key in found if key not in TITLES)):
        if key in found and key not in HIDDEN:
            for row in _rows(TITLES.get(key, key), found[key]):
                shown.add_row(*row)
            shown.add_section()
    return shown


def in_readme(found: Mapping[str, Any]) -> str:
    """What the README says of some figures: a table in Markdown, of those that are there."""
    rows = [row for key in IN_README if key in found for row in _rows(TITLES[key], found[key])]
    cells = [(*row, "", "")[:4] for row in rows]
    header = (_machine(found), "", *(f"encoder {state}" for state in STATES))
    lines = [header, ("---", *["---:"] * 3), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def between(place: str) -> re.Pattern[str]:
    """What stands between <!-- place --> and <!-- /place -->."""
    return re.compile(rf"(?<=<!-- {place} -->\n).*?(?=<!-- /{place} -->)", re.DOTALL)


def write_readme(readme: Path, place: str, table: str) -> None:
    """Put a table into its place in the README, between <!-- place --> and <!-- /place -->."""
    text = between(place).sub(lambda _: table, readme.read_text(encoding="utf-8"))
    write_atomically(readme, lambda path: path.write_text(text, encoding="utf-8"))


def _machine(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    return f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {versions['torch']}"


def _rows(name: str, value: Any) -> Iterator[Row]:
    """A row for a figure, for a pair of them (encoder frozen and unfrozen), or for each part of a mapping."""
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
        if 0.1 <= abs(value) < 10 and isinstance(value, float):
            return f"{value:.2f}"
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    return "-" if value is None else str(value)
