"""predictions.png: images, truth, teacher, student and errors side by side, a row for each sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from kd.run.plots import GREY, save

MISSED, INVENTED, VOID = (209, 73, 91), (242, 192, 55), (255, 255, 255)
#: The last panel's title.
ERRORS = "where student and truth differ"


def draw_predictions(
    samples: Sequence[Mapping[str, Any]], class_names: Sequence[str], ignore_index: int | None, path: Path,
    measured_at: str = "",
) -> None:  # fmt: skip
    """Draw a row per sample: image, truth, teacher (if any), student, and the student's errors.

    Each sample maps `image` to H x W x 3 uint8, and `truth`, `student` and optionally `teacher` to H x W uint8 labels;
    `note`, if there is one, stands below its row. `measured_at` says at which size the scores are.
    """
    taught = ["teacher"] if "teacher" in samples[0] else []
    titles = ["image", "truth", *taught, "student", ERRORS]
    figure = _figure(samples, titles, class_names, ignore_index, error_colours(len(class_names)))
    if measured_at:
        figure.legends[0].set_title(f"at {measured_at}", FontProperties(size=8))
    save(figure, path)


def draw_side_by_side(
    samples: Sequence[Mapping[str, Any]], class_names: Sequence[str], ignore_index: int | None, path: Path
) -> None:
    """Draw a row per sample: what it maps names to, image, truth and labels of several networks, in its own order."""
    save(_figure(samples, [*samples[0]], class_names, ignore_index, {}), path)


def _figure(samples: Sequence[Mapping[str, Any]], titles: Sequence[str], class_names: Sequence[str],
            ignore_index: int | None, errors: Mapping[str, tuple[int, int, int]]) -> Figure:  # fmt: skip
    """The panels of each sample in a row under their titles, its note below; a legend of classes, void and `errors`."""
    width = max(sample["image"].shape[1] for sample in samples)
    gap = max(2, round(0.03 * width))
    below = round(0.09 * width) + gap if any("note" in sample for sample in samples) else gap
    colours = class_colours(len(class_names))
    void = {"void": VOID} if any((sample["truth"] == ignore_index).any() for sample in samples) else {}
    named = {**{name: colours[number] for number, name in enumerate(class_names)}, **void, **errors}
    rows = [[panel(title, sample, colours, ignore_index) for title in titles] for sample in samples]
    sheet = _sheet(rows, gap, below)
    inches, head, foot = 2.2 * len(titles), 0.3, 0.4 + 0.2 * -(-len(named) // 6)
    tall = inches * sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(inches, tall + head + foot))
    ax = figure.add_axes((0.005, foot / (tall + head + foot), 0.99, tall / (tall + head + foot)))
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    for column, title in enumerate(titles):
        ax.text(column * (width + gap) + width / 2, -gap, title, fontsize=9, ha="center", va="bottom")
    ends = np.cumsum([row[0].shape[0] + below for row in rows])
    for end, sample in zip(ends, samples, strict=True):
        if "note" in sample:
            ax.text(0, end - below, sample["note"], fontsize=8, va="top", parse_math=False)
    shades = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in named.values()]
    handles = [Line2D([], [], marker="s", linestyle="", color=shade, markeredgecolor=GREY if name == "void" else shade)
               for name, shade in zip(named, shades, strict=True)]  # fmt: skip
    figure.legend(handles, [*named], loc="lower center", ncols=min(len(named), 6), frameon=False, fontsize=8)
    return figure


def _sheet(pictures: Sequence[Sequence[np.ndarray]], gap: int, below: int) -> np.ndarray:
    """Rows of H x W x 3 uint8 pictures as one: `gap` or more white pixels right of each, and `below` below it."""
    width = max(each.shape[1] for row in pictures for each in row) + gap

    def framed(picture: np.ndarray) -> np.ndarray:
        return np.pad(picture, ((0, below), (0, width - picture.shape[1]), (0, 0)), constant_values=255)

    return np.concatenate([np.concatenate([framed(each) for each in row], axis=1) for row in pictures])


def class_colours(count: int) -> np.ndarray:
    """`count` RGB colours (uint8), one per label; the first is dark, for background."""
    palette = np.array([*matplotlib.color_sequences["tab20"], *matplotlib.color_sequences["tab20b"]])[:, :3] * 255
    repeated = palette[np.arange(max(count - 1, 0)) % len(palette)]
    return np.concatenate([[[40, 40, 48]], repeated]).astype(np.uint8)[:count]


def error_colours(classes: int) -> dict[str, tuple[int, int, int]]:
    """The colours of wrong pixels by their names; for two classes, what was missed and what was invented differ."""
    return {"missed": MISSED, "invented": INVENTED} if classes == 2 else {"wrong": MISSED}


def panel(title: str, sample: Mapping[str, np.ndarray], colours: np.ndarray, ignore_index: int | None) -> np.ndarray:
    """One picture of `draw_predictions`, H x W x 3 uint8: the image, labels by name, or the student's errors."""
    if title == "image":
        return sample["image"]
    if title == ERRORS:
        return with_errors(greyed(sample["image"]), sample["student"], sample["truth"], len(colours), ignore_index)
    labels = sample[title]
    panel = coloured(labels, colours)
    void = (labels == ignore_index) & (title == "truth")
    return np.where(void[..., None], VOID, panel).astype(np.uint8)


def coloured(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels (H x W) in the colours of their classes, H x W x 3 uint8; those beyond the last class look like it."""
    return colours[np.minimum(labels, len(colours) - 1)]


def greyed(image: np.ndarray) -> np.ndarray:
    """An image (H x W x 3 uint8) in pale grey, on which colours stand out."""
    return (image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6 + 80).astype(np.uint8)


def with_errors(
    picture: np.ndarray, labels: np.ndarray, truth: np.ndarray, classes: int, ignore_index: int | None
) -> np.ndarray:
    """A picture (H x W x 3 uint8) with the pixels in `error_colours` where labels (H x W) are wrong; void is not."""
    wrong = (labels != truth) & (truth != ignore_index)
    invented = wrong & (truth == 0) & (classes == 2)
    marked = np.where(wrong[..., None], MISSED, picture)
    return np.where(invented[..., None], INVENTED, marked).astype(np.uint8)
