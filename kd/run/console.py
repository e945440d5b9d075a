"""Console output during and after a run: a live display on a terminal, plain lines elsewhere."""

import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kd.data.batches.batch import Batch
from kd.data.batches.loading import TrainLoader
from kd.data.batches.unlabelled import BatchSize
from kd.system.terminal import can_move, to_log
from kd.training.quality import Compared, metric_title, quality_metrics

QUIET = 60.0  # seconds between two lines within an epoch where there is no terminal
WORTH_A_REMEDY = 0.1  # of an epoch's time

console = Console(highlight=False, markup=False)  # names may have [brackets]


class ProgressLoader:
    """A training loader that advances a progress bar with every batch."""

    def __init__(self, loader: TrainLoader, display: "Display") -> None:
        self.loader, self.display, self.world = loader, display, loader.world

    def steps(self) -> int:
        return self.loader.steps()

    def batch_size(self) -> BatchSize:
        return self.loader.batch_size()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.display.set_steps(epoch * self.steps() + start)
        for batch in self.loader.epoch(epoch, start):
            self.display.advance(sum(self.batch_size()))  # before: an epoch's last batch is not asked to go on
            yield batch


class Display:
    """Progress of one training, titled with the network that is trained; a context manager."""

    def __init__(self, who: str, epochs: int, steps: int, objective: str, class_names: Sequence[str] = ()) -> None:
        self.who, self.epochs, self.objective = who, epochs, objective
        self.metrics = dict.fromkeys([quality_metrics(class_names)[0], "miou"])
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[last]}"),
            console=console, disable=not can_move(console),
        )  # fmt: skip
        self.task, self.steps = self.progress.add_task(who, total=epochs * steps, last=""), steps
        self._said = time.monotonic()

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def set_steps(self, steps: int) -> None:
        """Set the number of steps that are done, as after a resume."""
        self.progress.update(self.task, completed=steps)

    def advance(self, images: int) -> None:
        """Count a step of so many images; without a terminal, print a line every QUIET seconds."""
        self.progress.advance(self.task)
        if self.progress.disable and time.monotonic() - self._said > QUIET:
            self._say_progress(images)

    def _say_progress(self, images: int) -> None:
        """Print the step within the epoch, the speed of the last steps and the time left for all epochs."""
        task, self._said = self.progress.tasks[0], time.monotonic()
        before = int(task.completed) - 1
        left = "" if task.time_remaining is None else f"  {timedelta(seconds=round(task.time_remaining))} left"
        say(
            f"{self.who} {before // self.steps + 1:>3}/{self.epochs}  step {before % self.steps + 1} of {self.steps}  "
            f"{(task.speed or 0) * images:.1f} img/s{left}"
        )

    def epoch(self, record: Mapping[str, Any], best: bool) -> None:
        """Print one line for an epoch, above the bar on a terminal."""
        quality = "  ".join(f"{metric_title(name)} {figure(record.get(f'val/{name}'))}" for name in self.metrics)
        heat = record.get("temperature")
        line = (
            f"{self.who} {record['epoch'] + 1:>3}/{self.epochs}  {'' if heat is None else f'T {heat:.2f}  '}"
            f"unfrozen {record['unfrozen_blocks']}  lr {record['lr/decoder']:.1e}  loss {record['train/loss']:.4f}  "
            f"{quality}  {record['images_per_second']:.1f} img/s"
            f"{_waiting(record)}{_whose_weights(record)}{'  *' if best else ''}"
        )
        self.progress.console.print(line, soft_wrap=True, markup=False)
        to_log(line)
        self._said = time.monotonic()
        self.progress.update(self.task, last=f"best {self.objective} marked *")


def _waiting(record: Mapping[str, Any]) -> str:
    """How much of an epoch went by waiting for data, if that is worth a remedy (docs/speed.md)."""
    share = record.get("seconds_waiting", 0.0) / (record["seconds"] or 1.0)
    return "" if share < WORTH_A_REMEDY else f"  {share:.0%} waiting for data"


def _whose_weights(record: Mapping[str, Any]) -> str:
    """Whether the figures of an epoch are those of the averaged weights; empty where there is no average."""
    averaged = record.get("val/averaged")
    return "" if averaged is None else "  average" if averaged else "  raw"


def figure(value: float | None, form: str = ".4f") -> str:
    """A number as text; a dash for None."""
    return "-" if value is None else format(value, form)


#: A network's size and speed: key among its figures, title, format.
SIZES = (
    ("parameters", "parameters", ",d"),
    ("macs", "multiply-adds", ",d"),
    ("file_bytes", "file, bytes", ",d"),
    ("latency_ms", "latency, ms/image", ".1f"),
)


def by_kind(name: str, value: float | None) -> str:
    """A metric as text: whole numbers of parameters and bytes, a decimal of milliseconds, else four decimals.

    >>> by_kind("student/parameters", 2198257.0), by_kind("val/miou", 0.5)
    ('2,198,257', '0.5000')
    """
    form = next((form for key, _, form in SIZES if name.rpartition("/")[2] == key), ".4f")
    return figure(round(value) if value is not None and form == ",d" else value, form)


def quality_rows(class_names: Sequence[str]) -> list[tuple[str, str]]:
    """A network's quality, the decisive metric first: key among its figures, title."""
    metrics = [(name, metric_title(name)) for name in quality_metrics(class_names)]
    return [(f"{split}/{name}", f"{shown}, {split}") for split in ("val", "test") for name, shown in metrics]


def comparison(compared: Compared, measured_at: str = "", alone: str = "student", reference: str = "trivial") -> Table:
    """Table of size, speed and quality of teacher and student, with the ratio of their sizes.

    `alone` is what the only network is called where there is no teacher, `reference` the trivial prediction.
    """
    student, teacher, trivial = compared.student, compared.teacher, compared.trivial
    table = Table(title=f"results at {measured_at}" if measured_at else "results", title_justify="left")
    titles = ("teacher", "student", "ratio") if teacher else (alone,)
    for name in ("", *titles, reference):
        table.add_column(name, justify="right" if name else "left")
    for key, what, form in SIZES:
        if student.get(key) is not None:
            other = teacher.get(key)
            ratio = [figure(other, form), figure(student[key], form), f"{student[key] / other:.3f}" if other else "-"]
            table.add_row(what, *(ratio if teacher else [figure(student[key], form)]))
    for key, what in quality_rows(compared.class_names):
        if student.get(key) is not None:
            cells = [figure(teacher.get(key)), figure(student[key]), ""] if teacher else [figure(student[key])]
            table.add_row(what, *cells, figure(trivial.get(key)))
    return table


def say(*lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
        to_log(line)


def say_next(*commands: str) -> None:
    """Print the commands to type next, one per line."""
    say(*(f"{'next' if number == 0 else '':<9}{command}" for number, command in enumerate(commands)))


def tell(parts: Iterable[Table | str]) -> None:
    """Print tables and lines in order."""
    for part in parts:
        say(part) if isinstance(part, str) else show(part)


def show(table: Table) -> None:
    """Print a table; on a narrow terminal its cells wrap, so that no figure is truncated."""
    for column in table.columns:
        column.overflow = "fold"
    console.print(table)
    plain = Console(file=io.StringIO(), width=100, markup=False)
    plain.print(table)
    to_log(plain.file.getvalue())  # type: ignore[attr-defined]
