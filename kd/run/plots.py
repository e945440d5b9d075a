"""Plots of a run: its plan and its learning curves. Each function draws one PNG."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from kd.plan.timeline import Timeline
from kd.settings import TASK_TERMS, TEACHING_TERMS
from kd.system.files import write_atomically
from kd.training.quality import quality_metrics

TEACHER, STUDENT, WARM, GREY = "#7a5195", "#1f77b4", "#d1495b", "#8a8a8a"
LEGEND = 26  # characters of a line in the margin beside the curves


def _panels(count: int, beside: float = 0.97) -> tuple[Figure, Sequence[Axes]]:
    """`count` axes below one another over the same epochs; fixed margins, since fitting them costs another drawing.

    `beside` is where they end, for legends beside them.
    """
    figure, axes = plt.subplots(count, 1, figsize=(8, 7), sharex=True)
    figure.subplots_adjust(left=0.11, right=beside, top=0.94, bottom=0.08, hspace=0.16)
    figure.align_ylabels()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
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
    save(figure, path)


def _block_names(blocks: int) -> list[str]:
    return ["deepest" if depth == 0 else "stem" if depth == blocks - 1 else str(depth + 1) for depth in range(blocks)]


def draw_curves(
    records: Sequence[Mapping[str, Any]], best_epoch: int, class_names: Sequence[str],
    references: Mapping[str, Mapping[str, Any]], path: Path, weights: Mapping[str, float] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Draw loss terms and validation figures over epochs, marking the epochs in which blocks are unfrozen.

    `references` maps "teacher" and "trivial" to their figures, for a level of the decisive metric. `weights` are those
    of the loss's terms, which are drawn as they enter the sum.
    """
    taught = any("val/teacher_agreement" in record for record in records)
    figure, (loss, quality, *apart) = _panels(3 if taught else 2, beside=0.73)
    _draw_losses(loss, records, weights)
    _draw_quality(quality, records, class_names, references)
    for ax in apart:
        epochs, agreement = _figures(records, "val/teacher_agreement")
        ax.plot(epochs, 1 - np.array(agreement), color=TEACHER, marker=".", label="student and teacher differ")
        ax.set(ylabel="share of pixels", ylim=(0, None))
    for ax in (quality, *apart):
        ax.axvline(best_epoch + 1, color=GREY, linewidth=1, linestyle="-.", label="best epoch")
    for ax in (loss, quality, *apart):
        _legend_beside(ax)
    figure.axes[-1].set_xlabel("epoch")
    _mark_unfreezing((loss, quality, *apart), records)
    save(figure, path)


def _legend_beside(ax: Axes) -> None:
    """A legend in the margin; names of classes that are longer than it are wrapped, since the figure's edge cuts."""
    for text in ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0)).get_texts():
        text.set_text(fill(text.get_text(), LEGEND))


def _draw_losses(ax: Axes, records: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> None:
    terms = {f"train/{term}": weights.get(term, 1.0) for term in (*TEACHING_TERMS, *TASK_TERMS)}
    for name, weight in {"train/loss": 1.0, **terms, "val/loss": 1.0}.items():
        if any(name in record for record in records):
            epochs, values = _figures(records, name)
            width = 2.2 if name.endswith("/loss") else 1.0
            label = name if weight == 1 else f"{weight:g} × {name}"
            ax.plot(epochs, weight * np.array(values), label=label, linewidth=width, marker=".")
    ax.set(ylabel="loss", yscale="log")


def _draw_quality(ax: Axes, records: Sequence[Mapping[str, Any]], class_names: Sequence[str],
                  references: Mapping[str, Mapping[str, Any]]) -> None:  # fmt: skip
    decisive, *others = (f"val/{metric}" for metric in quality_metrics(class_names))
    for name, style in {decisive: "-", **dict(zip(others, ("--", "-."), strict=False))}.items():
        if any(name in record for record in records):
            width = 2.2 if name == decisive else 1.0
            ax.plot(*_figures(records, name), style, color=STUDENT, label=name, linewidth=width, marker=".")
    levels = (("teacher", f"{decisive} of the teacher", TEACHER),
              ("trivial", f"{decisive} of a trivial prediction", GREY))  # fmt: skip
    for who, of, colour in levels:
        level = references.get(who, {}).get(decisive)
        if level is not None:
            ax.axhline(level, color=colour, linewidth=1, label=of)
    ax.set(ylabel="validation", ylim=(0, 1))


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
