"""Pictures that only a report has, as PNG bytes, in the style of `kd.run.plots`."""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from kd.run.plots import GREY, STUDENT, TEACHER, WARM
from kd.run.predictions import ERRORS, class_colours, coloured, greyed, panel, with_errors
from kd.training.calibration import BINS, expected_error

WHOSE = {"teacher": TEACHER, "student": STUDENT}
RUNS = (STUDENT, WARM, "#2a9d8f", TEACHER, "#e9a23b", "#5c677d", "#8f5d3b", "#c05299")
DASHES = ("-", "--", ":", "-.")  # so that two equal curves are both visible
DPI = 130


def drawn(draw: Callable[[Path], None]) -> bytes:
    """The PNG that a function of `kd.run.plots` draws."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    plt.close(figure)
    return buffer.getvalue()


def reliability(tables: Mapping[str, Tensor]) -> bytes:
    """Accuracy over confidence, a panel per network, with the share of pixels in each bin below it on one scale.

    Reference: Guo et al., arXiv 1706.04599, figure 1.
    """
    columns = len(tables)
    figure, axes = plt.subplots(2, columns, figsize=(4.4 * columns, 4.6), squeeze=False, sharex=True, sharey="row",
                                gridspec_kw={"height_ratios": [3, 1]})  # fmt: skip
    figure.subplots_adjust(left=0.16 / columns**0.7, right=0.97, top=0.92, bottom=0.11, hspace=0.12, wspace=0.28)
    for column, (name, table) in enumerate(tables.items()):
        _reliability(axes[0, column], axes[1, column], name, table)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of\npixels")
    return _png(figure)


def _reliability(above: Axes, below: Axes, name: str, table: Tensor) -> None:
    pixels, right, sums = (column.numpy() for column in table.unbind(dim=1))
    filled, colour = pixels > 0, WHOSE.get(name.partition(",")[0], STUDENT)
    left = np.arange(BINS) / BINS
    accuracy, confidence = right[filled] / pixels[filled], sums[filled] / pixels[filled]
    above.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    above.bar(left[filled], accuracy, 1 / BINS, align="edge", color=colour, alpha=0.55, edgecolor="white", zorder=2)
    above.plot(confidence, accuracy, color=colour, marker="o", markersize=3, linewidth=1, zorder=3)
    above.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}: ECE {expected_error(table) or 0:.4f}")
    below.bar(left, pixels / max(pixels.sum(), 1), 1 / BINS, align="edge", color=GREY, alpha=0.6, edgecolor="white")
    below.set(xlabel="confidence", ylim=(0, None))
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)


#: Metrics that are overlaid, one panel each: key and title.
OVERLAID = (("val/miou", "mIoU, val"), ("train/loss", "loss, training"), ("temperature", "temperature"),
            ("unfrozen_blocks", "unfrozen encoder blocks"))  # fmt: skip


def overlay(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Records of several runs over their epochs, a colour each; what learned without a teacher has no temperature."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4))
    figure.subplots_adjust(left=0.07, right=0.985, top=0.94, bottom=0.13, hspace=0.3, wspace=0.17)
    axes: list[Axes] = list(grid.flat)
    for ax, (name, title) in zip(axes, OVERLAID, strict=True):
        for number, (label, records) in enumerate(runs.items()):
            _overlay(ax, number, label, records, name)
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(title, fontsize=10, loc="left")
    for ax in axes[2:]:
        ax.set_xlabel("epoch")
    for ax in (axes[0], *axes[2:]):
        ax.set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 6), frameon=False, fontsize=9)
    return _png(figure)


def _overlay(ax: Axes, number: int, label: str, records: Sequence[Mapping[str, Any]], name: str) -> None:
    """One run's curve of one metric, over the epochs that have it."""
    points = [(record["epoch"] + 1, record[name]) for record in records if record.get(name) is not None]
    style: dict[str, Any] = {"drawstyle": "steps-mid"} if name == "unfrozen_blocks" else {"marker": "."}
    colour, dashes = RUNS[number % len(RUNS)], DASHES[(number + number // len(RUNS)) % len(DASHES)]
    ax.plot([x for x, _ in points], [y for _, y in points], dashes, color=colour, label=label, linewidth=1.5, **style)


def panels(sample: Mapping[str, np.ndarray], labels: int, ignore_index: int | None) -> list[tuple[str, bytes]]:
    """The pictures of one sample: image, truth, teacher (if any), student, and the student's errors."""
    titles = ["image", "truth", *(["teacher"] if "teacher" in sample else []), "student", ERRORS]
    colours = class_colours(labels)
    named = {ERRORS: "the student's errors"}
    return [(named.get(each, each), _picture(panel(each, sample, colours, ignore_index))) for each in titles]


def compared(
    sample: Mapping[str, np.ndarray], students: Mapping[str, tuple[str, np.ndarray]], labels: int,
    ignore_index: int | None,
) -> list[tuple[str, bytes]]:  # fmt: skip
    """The pictures of one sample and of several students by name, each as its score and its labels (H x W uint8).

    Image and truth, then each student's labels. For two classes these have what it missed and what it invented in them;
    for more, where any colour means a class, its errors stand beside them.
    """
    colours, image, truth = class_colours(labels), sample["image"], sample["truth"]
    found = [(each, panel(each, sample, colours, ignore_index)) for each in ("image", "truth")]
    for name, (score, predicted) in students.items():
        shown, title = coloured(predicted, colours), f"{name}, {score}"
        if labels == 2:
            found.append((title, with_errors(shown, predicted, truth, labels, ignore_index)))
        else:
            wrong = with_errors(greyed(image), predicted, truth, labels, ignore_index)
            found += [(title, shown), (f"{name}'s errors", wrong)]
    return [(title, _picture(pixels)) for title, pixels in found]


def _picture(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
