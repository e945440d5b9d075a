"""What a run leaves for its report beside its figures.

evidence.json           the trivial baseline's figures, the worst and best samples by name, memory
evidence.safetensors    confusion matrices, calibration, a score per image, pictures of the worst and best samples

The trivial baseline predicts, at each pixel, the class that training masks have there most often, whatever the image:
what a network must beat before it has learnt anything from pixels.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from kd.data.source import spaced
from kd.experiment.context import RunContext
from kd.experiment.teacher_cache import MeasuredTeacher
from kd.run.folder import RunFolder
from kd.system import tensor_file
from kd.system.files import write_atomically, write_json
from kd.training.diagnostics import CloseLook, tensors
from kd.training.metrics import Confusion

MASKS = 512  # of the training split, at most, that the trivial baseline is made from
SHOWN = 3  # samples at each end
SIDE = 256  # pixels of their pictures at most: a report is to be mailed
SPLITS = ("val", "test")


def looks(context: RunContext, teacher: MeasuredTeacher | None) -> dict[str, CloseLook]:
    """The looks to take at a student: beside its teacher on validation, beside the trivial baseline everywhere."""
    usual = usual_labels(
        lambda index: context.samples.read("train", index)[1],
        context.data.size("train"),
        len(context.data.class_names),
        context.data.image_size,
        context.data.ignore_index,
    )
    taught = {"val": teacher.batches(context.settings.trainer.batch_size)} if teacher else {}
    return {split: context.look(usual, taught.get(split)) for split in SPLITS if context.data.size(split)}


def leave(
    context: RunContext,
    folder: RunFolder,
    seen: Mapping[str, CloseLook],
    labels: Tensor,
    teacher: MeasuredTeacher | None,
) -> None:
    """Write what was seen of a student, whose `labels` over validation are N x H x W, and of its teacher."""
    found = tensors(seen, "student")
    found |= {f"teacher/{name}": tensor for name, tensor in teacher.seen.items()} if teacher else {}
    samples = list(_samples(context, found["student/val/scores"], labels, teacher.labels if teacher else None))
    for number, sample in enumerate(samples):
        found |= {f"sample/{number}/{name}": small(picture) for name, picture in sample.pop("pictures").items()}
    write_atomically(folder / "evidence.safetensors", lambda path: tensor_file.write(path, found, {}))
    facts = {
        "class_names": context.data.class_names,
        "ignore_index": context.data.ignore_index,
        "images": {split: context.data.size(split) for split in ("train", *SPLITS)},
        "baseline": {
            "masks": len(spaced(context.data.size("train"), MASKS)),
            **baseline_figures(found, context.data.class_names, context.data.ignore_index),
        },
        "samples": samples,
        "memory": peak_memory(context.precision.device),
    }
    write_json(folder / "evidence.json", facts)


def _samples(context: RunContext, scores: Tensor, labels: Tensor, teacher: Tensor | None) -> Iterator[dict[str, Any]]:
    """The validation samples that the student did worst and best on, each with its pictures."""
    for end, indices in ends(scores).items():
        for index in indices:
            pictures, name = sample(context, index, labels, teacher), context.data.name("val", index)
            yield {"end": end, "index": index, "name": name, "miou": float(scores[index]), "pictures": pictures}


def sample(context: RunContext, index: int, student: Tensor, teacher: Tensor | None) -> dict[str, np.ndarray]:
    """A validation sample by number: image, truth, and what student and teacher (where there is one) made of it.

    `student` and `teacher` are their labels over the split, N x H x W uint8.
    """
    image, truth = context.samples.read("val", index)
    found = {"image": image, "truth": truth, "student": student[index].numpy()}
    return found if teacher is None else {**found, "teacher": teacher[index].numpy()}


def usual_labels(
    mask: Callable[[int], np.ndarray], samples: int, labels: int, size: tuple[int, int], ignore_index: int | None
) -> Tensor:
    """The most frequent label of each pixel, H x W uint8, over at most `MASKS` of so many masks, evenly spaced.

    The lower label where two are as frequent; where no mask says anything of a pixel, the most frequent label overall.
    """
    pixels = size[0] * size[1]
    counts, places = np.zeros((labels, pixels), np.uint16), np.arange(pixels)
    for index in spaced(samples, MASKS):
        found = mask(index).reshape(-1)
        known = slice(None) if ignore_index is None else found != ignore_index
        counts[found[known], places[known]] += 1
    usual = counts.argmax(axis=0)
    usual[counts.max(axis=0) == 0] = counts.sum(axis=1, dtype=np.int64).argmax()
    return torch.from_numpy(usual.astype(np.uint8).reshape(size))


def ends(scores: Tensor, count: int = SHOWN) -> dict[str, list[int]]:
    """The indices of the images with the lowest scores, lowest first, and of those with the highest, highest first."""
    order = [index for index in scores.argsort(stable=True).tolist() if not scores[index].isnan()]
    few = min(count, -(-len(order) // 2))
    return {"worst": order[:few], "best": order[few:][::-1][:few]}


def small(picture: np.ndarray) -> Tensor:
    """A picture (H x W x 3) or labels (H x W), brought to `SIDE` at most; labels stay labels."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        to = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, to, interpolation=cv2.INTER_AREA if picture.ndim == 3 else cv2.INTER_NEAREST)
    return torch.from_numpy(np.ascontiguousarray(picture))


def baseline_figures(
    found: Mapping[str, Tensor], names: Sequence[str], ignore_index: int | None
) -> dict[str, float | None]:
    """The trivial baseline's miou, dice and iou/<class> on each split, under the names that a network's have."""
    figures: dict[str, float | None] = {}
    for split in SPLITS:
        if (counts := found.get(f"student/{split}/baseline")) is not None:
            confusion = Confusion(len(names), ignore_index)
            confusion.counts = counts
            figures |= {f"{split}/{name}": value for name, value in confusion.summary(names).items()}
    return figures


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory, in bytes, that this process has held so far, and of a GPU's."""
    found = {}
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        found["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return found
