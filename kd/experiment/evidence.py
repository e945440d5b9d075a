"""Files that a run writes for its report, besides summary and metrics.

evidence.json           how many masks made the trivial baseline, the samples that are shown by name, memory
evidence.safetensors    confusion matrices, calibration, a score per image, pictures of the samples that are shown

These are the worst and the best of the validation split, and evenly spaced ones: the same for every run on the same
data, so that a report can set several runs side by side.

The trivial baseline predicts, at each pixel, the label that training masks have there most often, whatever the image. A
network that does not beat it has learnt nothing from pixels.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.files.decode import resized_image, resized_labels
from kd.data.files.stretch import as_rgb
from kd.data.source import spaced
from kd.experiment.builders import EVALUATED, build_diagnostics
from kd.experiment.context import RunContext
from kd.experiment.measured_teacher import MeasuredTeacher
from kd.run.folder import RunFolder
from kd.system import tensor_file
from kd.system.files import write_atomically, write_json
from kd.training.diagnostics import Diagnostics, tensors
from kd.training.evaluation import Labels
from kd.training.metrics import reference_summary

MASKS = 512  # training masks, at most, that the trivial baseline is computed from
SHOWN = 3  # worst and best samples, of each
SPACED = 5  # evenly spaced samples, which are in predictions.png, too
SIDE = 256  # pixels of their pictures at most, so that a report can be mailed


def student_diagnostics(context: RunContext, teacher: MeasuredTeacher | None) -> dict[str, Diagnostics]:
    """Empty diagnostics of a student, to be compared with the baseline, and on validation with its teacher."""
    reference = teacher.batches(context.evaluated_together) if teacher else None
    return build_diagnostics(context, _baseline(context), reference)


def _baseline(context: RunContext) -> Tensor:
    """The trivial baseline's labels at the size of the network, H x W uint8."""
    data = context.data

    def mask(index: int) -> np.ndarray:
        return resized_labels(data.voided(context.samples.read("train", index)[1]), data.image_size)

    return majority_labels(mask, data.size("train"), len(data.class_names), data.image_size, data.void)


def write_evidence(
    context: RunContext,
    folder: RunFolder,
    diagnostics: Mapping[str, Diagnostics],
    labels: Labels,
    teacher: MeasuredTeacher | None,
) -> None:
    """Write the diagnostics of a student, with its `labels` over validation, and of its teacher."""
    found = tensors(diagnostics, "student")
    found |= {f"teacher/{name}": tensor for name, tensor in teacher.diagnostics.items()} if teacher else {}
    samples = list(_samples(context, found["student/val/scores"], labels, teacher.labels if teacher else None))
    for number, sample in enumerate(samples):
        found |= {f"sample/{number}/{name}": thumbnail(picture) for name, picture in sample.pop("pictures").items()}
    write_atomically(folder / "evidence.safetensors", lambda path: tensor_file.write(path, found, {}))
    write_json(folder / "evidence.json", _facts(context, samples))


def _facts(context: RunContext, samples: list[dict[str, Any]]) -> dict[str, Any]:
    data = context.data
    return {
        "class_names": data.class_names,
        "ignore_index": data.void,
        "measured_at": data.sizing.in_words,
        "images": {split: data.size(split) for split in ("train", *EVALUATED)},
        "baseline_masks": len(spaced(data.size("train"), MASKS)),
        "samples": samples,
        "memory": peak_memory(context.precision.device),
    }


def _samples(context: RunContext, scores: Tensor, labels: Labels, teacher: Labels | None) -> Iterator[dict[str, Any]]:
    """The validation samples with the student's worst and best scores, and evenly spaced ones, with their pictures."""
    for end, indices in {**worst_and_best(scores), "even": spaced(len(labels), SPACED)}.items():
        for index in indices:
            pictures, name = sample(context, index, labels, teacher), context.data.name("val", index)
            yield {"end": end, "index": index, "name": name, "miou": float(scores[index]), "pictures": pictures}


def sample(context: RunContext, index: int, student: Labels, teacher: Labels | None) -> dict[str, np.ndarray]:
    """A validation sample by index: image, truth, the student's labels and, if given, the teacher's.

    `student` and `teacher` are labels over the whole split, H x W uint8 for each picture.
    """
    image, truth = context.samples.read("val", index)
    found = {
        "image": as_rgb(image, context.data.pixels),
        "truth": context.data.voided(truth),
        "student": student[index].numpy(),
    }
    return found if teacher is None else {**found, "teacher": teacher[index].numpy()}


def majority_labels(
    mask: Callable[[int], np.ndarray], samples: int, labels: int, size: tuple[int, int], ignore_index: int | None
) -> Tensor:
    """The most frequent label of each pixel, H x W uint8, over at most `MASKS` evenly spaced ones of `samples` masks.

    The lower label on ties. A pixel that is void in all masks gets the most frequent label overall.
    """
    pixels = size[0] * size[1]
    counts, places = np.zeros((labels, pixels), np.uint16), np.arange(pixels)
    for index in spaced(samples, MASKS):
        flat = mask(index).reshape(-1)
        valid = slice(None) if ignore_index is None else flat != ignore_index
        counts[flat[valid], places[valid]] += 1
    majority = counts.argmax(axis=0)
    majority[counts.max(axis=0) == 0] = counts.sum(axis=1, dtype=np.int64).argmax()
    return torch.from_numpy(majority.astype(np.uint8).reshape(size))


def worst_and_best(scores: Tensor) -> dict[str, list[int]]:
    """The indices of the images with the lowest scores, lowest first, and with the highest, highest first."""
    order = [index for index in scores.argsort(stable=True).tolist() if not scores[index].isnan()]
    shown = min(SHOWN, -(-len(order) // 2))
    return {"worst": order[:shown], "best": order[shown:][::-1][:shown]}


def thumbnail(picture: np.ndarray) -> Tensor:
    """A picture (H x W x 3) or labels (H x W), scaled down to `SIDE` pixels at most; labels are not interpolated."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        to = max(1, round(height * scale)), max(1, round(width * scale))
        picture = resized_image(picture, to) if picture.ndim == 3 else resized_labels(picture, to)
    return torch.tensor(picture)  # a copy: no two tensors of a file may share memory


def baseline_metrics(diagnostics: Mapping[str, Diagnostics], class_names: Sequence[str]) -> dict[str, float | None]:
    """The trivial baseline's metrics on each split, named as a network's, from the diagnostics of a student.

    For binary data, the foreground's are at least those of foreground everywhere (`reference_summary`).
    """
    return {
        f"{split}/{name}": value
        for split, each in diagnostics.items()
        if each.scores  # the split has samples
        for name, value in reference_summary(each.baseline, class_names).items()
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """The peak memory of this process so far, and its peak on the GPU, in bytes."""
    found = {}
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        found["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return found
