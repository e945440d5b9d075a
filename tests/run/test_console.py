"""Console output: plain lines without a terminal, and a table with correct ratios."""

import io
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from rich.console import Console

from kd.data import Shapes
from kd.data.batches.loading import TrainLoader
from kd.data.views.augmentation import Augmentation
from kd.run import console
from kd.run.console import Display, ProgressLoader, comparison
from kd.training.quality import Compared

FIGURES = {
    "parameters": 6_251_469,
    "file_bytes": 25_110_000,
    "latency_ms": 12.345,
    "val/loss": 0.4,
    "val/miou": 0.6,
    "val/dice": 0.7,
    "val/iou/foreground": 0.5,
    "test/miou": 0.55,
    "test/dice": 0.65,
}
TEACHER = {**FIGURES, "parameters": 13_158_765, "file_bytes": 53_000_000, "latency_ms": 49.38, "val/miou": 0.8}
NAMES = ["sky", "road", "car"]
BOTH = Compared(NAMES, FIGURES, TEACHER, {"val/miou": 0.4})
ALONE = replace(BOTH, teacher={})
RECORD = {
    "epoch": 1, "temperature": 3.25, "unfrozen_blocks": 2, "lr/decoder": 1e-3, "lr/encoder": 1e-4,
    "train/loss": 1.23456, "val/miou": 0.5, "seconds": 2.0, "images_per_second": 12.34,
}  # fmt: skip


def printed(table, width=100) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def rows(table) -> dict[str, list[str]]:
    """The cells of a printed table by the first of their row; its column titles under ''."""
    lines = [line.replace("┃", "│") for line in printed(table).splitlines()]
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if "│" in line]
    return {row[0]: row[1:] for row in cells[1:]}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns in place of this program's output."""
    file = Terminal()
    made = Console(file=file, width=100, highlight=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "console", made)
    return file


# the table of results


def test_sizes_have_the_ratio_of_student_to_teacher():
    found = rows(comparison(BOTH))
    assert found["parameters"] == ["13,158,765", "6,251,469", "0.475"]
    assert found["file, bytes"] == ["53,000,000", "25,110,000", "0.474"]
    assert found["latency, ms/image"] == ["49.4", "12.3", "0.250"]


def test_quality_stands_beside_the_trivial_baselines():
    found = rows(comparison(BOTH))
    assert found["mIoU, val"] == ["0.8000", "0.6000", "", "0.4000"]
    for name, key in (("Dice, val", "val/dice"), ("mIoU, test", "test/miou"), ("Dice, test", "test/dice")):
        assert found[name] == [f"{TEACHER[key]:.4f}", f"{FIGURES[key]:.4f}", "", "-"]
    assert len(found) == 7


def test_the_foreground_comes_first_in_binary_data():
    found = rows(comparison(Compared(["background", "cell"], {"val/miou": 0.6, "val/iou/cell": 0.3}, {}, {})))
    assert [*found] == ["IoU of cell, val", "mIoU, val"]


def test_columns_are_titled():
    both, alone = printed(comparison(BOTH)), printed(comparison(ALONE))
    assert "one class" in printed(comparison(ALONE, reference="one class"))
    assert all(title in both for title in ("teacher", "student", "ratio", "trivial"))
    assert "student" in alone
    assert "teacher" not in alone


def test_without_a_teacher_there_are_two_columns():
    found = rows(comparison(ALONE))
    assert found["parameters"] == ["6,251,469"]
    assert found["mIoU, val"] == ["0.6000", "0.4000"]


def test_without_a_test_split_there_are_no_rows_for_it():
    student = {name: value for name, value in FIGURES.items() if not name.startswith("test")}
    found = rows(comparison(replace(BOTH, student=student)))
    assert not any("test" in title for title in found)
    assert len(found) == 5


def test_missing_or_zero_figures_have_no_ratio():
    found = rows(comparison(replace(BOTH, teacher={**TEACHER, "parameters": 0, "file_bytes": None, "val/miou": None})))
    assert found["parameters"] == ["0", "6,251,469", "-"]
    assert found["file, bytes"] == ["-", "25,110,000", "-"]
    assert found["mIoU, val"] == ["-", "0.6000", "", "0.4000"]


def test_the_table_fits_eighty_columns():
    lines = printed(comparison(BOTH), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("width", [24, 40, 200])
def test_no_figure_is_cut_however_narrow_the_terminal_is(width, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, width=width))
    console.show(comparison(BOTH))
    assert "…" not in file.getvalue()
    digits = re.sub(r"[^0-9]", "", file.getvalue())
    assert Counter(digits) == Counter(re.sub(r"[^0-9]", "", printed(comparison(BOTH), 200)))


# epoch by epoch


def test_an_epoch_is_one_plain_line_without_a_terminal(capsys):
    with Display("student", 30, 4, "val/miou") as display:
        for _ in range(4):
            display.advance(2)
        display.epoch(RECORD, best=True)
        display.epoch({**RECORD, "epoch": 2}, best=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "student   2/30  T 3.25  unfrozen 2  lr 1.0e-03  loss 1.2346  mIoU 0.5000  12.3 img/s  *"
    assert second == "student   3/30  T 3.25  unfrozen 2  lr 1.0e-03  loss 1.2346  mIoU 0.5000  12.3 img/s"


def test_without_a_teacher_a_line_has_no_temperature(capsys):
    with Display("student", 30, 4, "val/miou") as display:
        display.epoch({name: value for name, value in RECORD.items() if name != "temperature"}, best=False)
    assert capsys.readouterr().out.startswith("student   2/30  unfrozen 2  lr 1.0e-03  loss 1.2346  ")


def test_a_long_epoch_says_how_far_it_is_where_there_is_no_terminal(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 31))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
    with Display("student", 3, 10, "val/miou") as display:
        display.set_steps(10)
        for _ in range(6):
            display.advance(4)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[0-9.]+ img/s.*", "", line) for line in lines] == [
        f"student   2/3  step {step} of 10  " for step in (2, 4, 6)
    ]
    assert all(re.search(r"  [0-9]+\.[0-9] img/s  [0-9]+:[0-9]{2}:[0-9]{2} left$", line) for line in lines)


def test_the_next_commands_stand_below_one_another(capsys):
    console.say_next("kd report x", "kd ui")
    assert capsys.readouterr().out == "next     kd report x\n         kd ui\n"


def test_an_epoch_without_figures_is_printed_too(capsys):
    with Display("teacher", 1, 1, "val/miou") as display:
        display.epoch({**RECORD, "val/miou": None}, best=False)
    assert "mIoU -" in capsys.readouterr().out


def test_names_are_printed_as_they_are(capsys):
    """Brackets are not markup: a path or an override may contain some."""
    console.say("run      /tmp/[bold]x[/bold]", "data.image_size=[32,32] " + "x" * 200)
    assert capsys.readouterr().out == f"run      /tmp/[bold]x[/bold]\ndata.image_size=[32,32] {'x' * 200}\n"


def test_a_table_has_no_colours_without_a_terminal(capsys):
    console.show(comparison(BOTH))
    out = capsys.readouterr().out
    assert "results" in out
    assert "\x1b" not in out


def test_on_a_terminal_a_bar_moves_under_the_lines(terminal):
    with Display("student", 2, 4, "val/miou") as display:
        for _ in range(4):
            display.advance(2)
        display.epoch(RECORD, best=True)
        assert display.progress.tasks[0].completed == 4
        assert display.progress.tasks[0].total == 8
    out = terminal.getvalue()
    assert "4/8" in out
    assert "mIoU 0.5000" in out


def test_progress_changes_no_batch_and_counts_each():
    loader = TrainLoader(Shapes(image_size=(32, 32), train=6), Augmentation([], 0), 2, 0)
    with Display("student", 2, 3, "val/miou") as display:
        counted = ProgressLoader(loader, display)
        assert counted.steps() == loader.steps() == 3
        for epoch in (0, 1):
            seen = [batch.indices.tolist() for batch in islice(counted.epoch(epoch), 3)]  # as the loop takes them
            assert seen == [batch.indices.tolist() for batch in loader.epoch(epoch)]
            assert display.progress.tasks[0].completed == 3 * (epoch + 1)
