"""Plots of a run: plan, learning curves, predictions. Each function draws one PNG."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kd.plan.timeline import Timeline
from kd.settings import TASK_TERMS, TEACHING_TERMS
from kd.system.files import write_atomically
from kd.training.quality import quality_metrics

TEACHER, STUDENT, WARM, GREY = "#7a5195", "#1f77b4", "#d1495b", "#8a8a8a"


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """`count` axes below one another over the same epochs; fixed margins, since fitting them costs another drawing."""
    figure, axes = plt.subplots(count, 1, figsize=(8, 7), sharex=True)
    figure.subplots_adjust(left=0.11, right=0.97, top=0.94, bottom=0.08, hspace=0.16)
    figure.align_ylabels()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    plt.close(figure)


def draw_timeline(timeline: Timeline, path: Path) -> None:
    """Draw temperature (if anything is distilled), unfrozen blocks and learning rates over the epochs of a plan."""
    plans = list(timeline)
    epochs = [plan.epoch + 1 for plan in plans]
    figure, (*heat, blocks, rates) = _panels(2 if timeline.schedule is None else 3)
    for ax in heat:
        ax.plot(epochs, np.array([plan.temperature for plan in plans], float), color=WARM, marker=".")
        ax.set(ylabel="temperature", ylim=(0, None))
    figure.suptitle(f"plan: {'temperature, ' if heat else ''}unfrozen encoder blocks, learning rates")

    shown = np.array([[depth < plan.unfrozen_blocks for plan in plans] for depth in range(timeline.blocks)])
    blocks.imshow(shown, aspect="auto", origin="lower", cmap=ListedColormap(["#e8edf2", STUDENT]), vmin=0, vmax=1,
                  extent=(0.5, len(plans) + 0.5, 0.5, timeline.blocks + 0.5))  # fmt: skip
    blocks.set(ylabel="encoder block", yticks=range(1, timeline.blocks + 1))
    blocks.set_yticklabels(_block_names(timeline.blocks), fontsize=8)
    blocks.set_title("encoder blocks: unfrozen (blue), frozen (grey)", fontsize=9, loc="left")

    rates.plot(epochs, [plan.lr_decoder for plan in plans], color=GREY, marker=".", label="decoder")
    unfrozen = [(plan.epoch + 1, plan.lr_encoder) for plan in plans if plan.unfrozen_blocks]
    if unfrozen:
        rates.plot(*zip(*unfrozen, strict=True), color=STUDENT, marker=".", label="deepest encoder block")
    rates.set(ylabel="learning rate", xlabel="epoch", yscale="log")
    rates.legend(frameon=False)
    _save(figure, path)


def _block_names(blocks: int) -> list[str]:
    return ["deepest" if depth == 0 else "stem" if depth == blocks - 1 else str(depth + 1) for depth in range(blocks)]


def draw_curves(
    records: Sequence[Mapping[str, Any]], best_epoch: int, class_names: Sequence[str],
    references: Mapping[str, Mapping[str, Any]], path: Path,
) -> None:  # fmt: skip
    """Draw loss terms and validation figures over epochs, marking the epochs in which blocks are unfrozen.

    `references` maps "teacher" and "trivial" to their figures, for a level of the decisive metric.
    """
    figure, (loss, quality) = _panels(2)
    for name in ("train/loss", *(f"train/{term}" for term in (*TEACHING_TERMS, *TASK_TERMS)), "val/loss"):
        if any(name in record for record in records):
            width = 2.2 if name.endswith("/loss") else 1.0
            loss.plot(*_figures(records, name), label=name, linewidth=width, marker=".")
    loss.set(ylabel="loss", yscale="log")
    loss.legend(frameon=False, ncols=3, fontsize=8)

    decisive, *others = (f"val/{metric}" for metric in quality_metrics(class_names))
    styles = {decisive: "-", **dict(zip(others, ("--", "-."), strict=False)), "val/teacher_agreement": ":"}
    for name, style in styles.items():
        if any(name in record for record in records):
            width = 2.2 if name == decisive else 1.0
            quality.plot(*_figures(records, name), style, color=STUDENT, label=name, linewidth=width, marker=".")
    for who, colour in (("teacher", TEACHER), ("trivial", GREY)):
        level = references.get(who, {}).get(decisive)
        if level is not None:
            quality.axhline(level, color=colour, linewidth=1, label=f"{decisive} of {who}")
    quality.axvline(best_epoch + 1, color=GREY, linewidth=1, linestyle="-.", label="best epoch")
    quality.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    quality.legend(frameon=False, ncols=2, fontsize=8, loc="best")
    _mark_unfreezing((loss, quality), records)
    _save(figure, path)


def _figures(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Epochs that have a figure, and the figures; None becomes NaN, a gap in the line."""
    found = [(record["epoch"] + 1, record[name]) for record in records if name in record]
    return [epoch for epoch, _ in found], [np.nan if value is None else value for _, value in found]


def _mark_unfreezing(axes: Sequence[Axes], records: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line at each epoch in which blocks are unfrozen, with their number above it."""
    for before, after in pairwise(records):
        if after["unfrozen_blocks"] > before["unfrozen_blocks"]:
            for ax in axes:
                ax.axvline(after["epoch"] + 1, color=GREY, linewidth=0.6, alpha=0.6, zorder=0)
            axes[0].text(after["epoch"] + 1, 1.0, f" {after['unfrozen_blocks']}", fontsize=7, color=GREY, va="bottom",
                         transform=axes[0].get_xaxis_transform())  # fmt: skip
    axes[0].set_title(
        "grey lines: an encoder block is unfrozen (number of unfrozen blocks above)", fontsize=9, loc="left", pad=14
    )


def draw_predictions(
    samples: Sequence[Mapping[str, np.ndarray]], class_names: Sequence[str], ignore_index: int | None, path: Path
) -> None:
    """Draw a row per sample: image, truth, teacher (if any), student, and the student's errors.

    Each sample maps `image` to H x W x 3 uint8, and `truth`, `student` and optionally `teacher` to H x W uint8 labels.
    """
    taught = ["teacher"] if "teacher" in samples[0] else []
    titles = ["image", "truth", *taught, "student", "where student and truth differ"]
    width = max(sample["image"].shape[1] for sample in samples)
    gap = max(2, round(0.03 * width))
    colours = class_colours(len(class_names))
    sheet = _sheet([[panel(title, sample, colours, ignore_index) for title in titles] for sample in samples], gap)
    inches, head, foot = 2.2 * len(titles), 0.3, 0.2 + 0.2 * -(-len(class_names) // 6)
    tall = inches * sheet.shape[0] / sheet.shape[1]
    figure = plt.figure(figsize=(inches, tall + head + foot))
    ax = figure.add_axes((0.005, foot / (tall + head + foot), 0.99, tall / (tall + head + foot)))
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    for column, title in enumerate(titles):
        ax.text(column * (width + gap) + width / 2, -gap, title, fontsize=9, ha="center", va="bottom")
    handles = [Line2D([], [], marker="s", linestyle="", color=colours[i] / 255) for i in range(len(class_names))]
    figure.legend(handles, class_names, loc="lower center", ncols=min(len(class_names), 6), frameon=False, fontsize=8)
    _save(figure, path)


def _sheet(pictures: Sequence[Sequence[np.ndarray]], gap: int) -> np.ndarray:
    """Rows of H x W x 3 uint8 pictures as one picture, with `gap` or more white pixels below and right of each."""
    width = max(each.shape[1] for row in pictures for each in row) + gap

    def framed(picture: np.ndarray) -> np.ndarray:
        return np.pad(picture, ((0, gap), (0, width - picture.shape[1]), (0, 0)), constant_values=255)

    return np.concatenate([np.concatenate([framed(each) for each in row], axis=1) for row in pictures])


def class_colours(count: int) -> np.ndarray:
    """`count` RGB colours (uint8), one per label; the first is dark, for background."""
    palette = np.array([*matplotlib.color_sequences["tab20"], *matplotlib.color_sequences["tab20b"]])[:, :3] * 255
    repeated = palette[np.arange(max(count - 1, 0)) % len(palette)]
    return np.concatenate([[[40, 40, 48]], repeated]).astype(np.uint8)[:count]


def panel(title: str, sample: Mapping[str, np.ndarray], colours: np.ndarray, ignore_index: int | None) -> np.ndarray:
    """One picture of `draw_predictions`, H x W x 3 uint8: the image, labels by name, or the student's errors."""
    if title == "image":
        return sample["image"]
    truth = sample["truth"]
    void = np.zeros_like(truth, bool) if ignore_index is None else truth == ignore_index
    if title.startswith("where"):
        wrong = (sample["student"] != truth) & ~void
        grey = sample["image"].mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6 + 80
        return np.where(wrong[..., None], (209, 73, 91), grey).astype(np.uint8)
    labels = sample[title]
    panel = colours[np.minimum(labels, len(colours) - 1)]
    return np.where((void & (title == "truth"))[..., None], 255, panel).astype(np.uint8)
