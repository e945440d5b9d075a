"""Validation pictures that a run folder keeps, with truth and predictions: one run's, and several runs' side by side.

A run keeps its student's worst and best pictures, and evenly spaced ones. The latter are the same pictures for every
run on the same data. That is not assumed here: two runs share a picture if name, image, truth and classes are equal.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd.report import pictures
from kd.report.elements import Folded, Legend, Picture, Section, Strip, Text
from kd.report.run_files import DAMAGES, Run
from kd.run.predictions import error_colours

EVEN = "even"  # end of the evenly spaced samples


@dataclass(frozen=True)
class Sample:
    """A validation picture with a student's prediction.

    Attributes:
        end: worst, best, or even (evenly spaced).
        miou: the student's mean IoU over the classes of this picture; None if unknown.
        arrays: uint8 of one size: `image` H x W x 3; `truth`, `student` and maybe `teacher` H x W labels.
    """

    end: str
    name: str
    miou: float | None
    arrays: Mapping[str, np.ndarray]

    @property
    def score(self) -> str:
        return "mIoU unknown" if self.miou is None else f"mIoU {self.miou:.3f}"


def samples(run: Run) -> list[Sample]:
    """The pictures that a run folder keeps.

    Raises:
        ValueError, or another of DAMAGES: one of them is damaged.
    """
    found = []
    for number, facts in enumerate(run.evidence.get("samples") or []):
        prefix = f"sample/{number}/"
        tensors = {name.removeprefix(prefix): each for name, each in run.seen.items() if name.startswith(prefix)}
        if tensors:
            found.append(Sample(str(facts["end"]), str(facts["name"]), _score(facts["miou"]), _checked(tensors)))
    return found


def _score(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _checked(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    size = arrays["truth"].shape
    shapes = {name: (*size, 3) if name == "image" else size for name in {*arrays, "image", "student"}}
    if len(size) != 2 or any(arrays[name].shape != shape for name, shape in shapes.items()):
        raise ValueError("the pictures of a sample differ in size")
    if any(array.dtype != np.uint8 for array in arrays.values()):
        raise ValueError("the pictures of a sample are not of 8 bits")
    return arrays


def predictions(run: Run) -> Section | None:
    """The validation images with the lowest and highest mean IoU, with truth and predictions."""
    found = samples(run)
    ends = [_strip(run, sample) for sample in found if sample.end != EVEN]
    even = _evenly_spaced(run, [sample for sample in found if sample.end == EVEN])
    blocks: list[Any] = [*ends, *([Folded("evenly spaced samples of the validation split", even)] if even and ends
                                  else even)]  # fmt: skip
    if not blocks:
        return None
    note = "The validation images with the student's lowest and highest mean IoU, with truth and predictions."
    return Section("predictions", "Predictions", [Text([note]), _legend(run), *blocks])


def _legend(run: Run) -> Legend:
    void = ["void"] if run.evidence.get("ignore_index") is not None else []
    return Legend(run.class_names, [*void, *error_colours(len(run.class_names))])


def _strip(run: Run, sample: Sample) -> Strip:
    end = "" if sample.end == EVEN else f"{sample.end}: "
    title = f"{end}{sample.name}, {sample.score} over its own classes"
    return Strip(title, pictures.panels(sample.arrays, len(run.class_names), run.evidence.get("ignore_index")))


def _evenly_spaced(run: Run, found: Sequence[Sample]) -> list[Any]:
    """Evenly spaced pictures of one run; those of an older folder are in predictions.png alone."""
    if found:
        return [_strip(run, sample) for sample in found]
    png = run.picture("predictions.png")
    alt = "image, truth, teacher, student and errors of samples"
    return [Picture(png, alt, "Image, truth, predictions, errors.")] if png else []


# several runs


def shared_predictions(runs: Mapping[str, Run]) -> Section | None:
    """A row per validation picture that runs share: image, truth, each student's prediction with its errors.

    What is not shared is said, and shown for each run by itself.
    """
    kept, notes = _kept(runs)
    shared = _in_common(runs, kept)
    beside = {letter for found in shared for letter in found}
    if strange := _strange(kept, beside):
        notes.append(
            f"{', '.join(strange)}: other validation pictures than the other runs (other data, size, or classes), so "
            "not side by side."
        )
    apart = [Folded(f"{letter}: its own pictures", own) for letter in runs if letter not in beside
             if (own := _evenly_spaced(runs[letter], kept.get(letter, [])))]  # fmt: skip
    if not shared and not apart:
        return None
    warning = [Text(notes, "warning")] if notes else []
    blocks = [*_shared(runs, shared), *warning, *apart]
    return Section("predictions", "Predictions", blocks, warning)


def strangers(runs: Mapping[str, Run]) -> list[str]:
    """The letters of the runs that keep validation pictures of which no other run has one."""
    kept, _ = _kept(runs)
    return _strange(kept, {letter for found in _in_common(runs, kept) for letter in found})


def _strange(kept: Mapping[str, Sequence[Sample]], beside: Collection[str]) -> list[str]:
    return [letter for letter, found in kept.items() if found and letter not in beside]


def _in_common(runs: Mapping[str, Run], kept: Mapping[str, Sequence[Sample]]) -> list[dict[str, Sample]]:
    """The pictures that several runs keep, each with the letters of those runs."""
    rows: dict[tuple[Any, ...], dict[str, Sample]] = {}
    for letter, found in kept.items():
        for sample in found:
            rows.setdefault(_identity(runs[letter], sample), {})[letter] = sample
    return [found for found in rows.values() if len(found) > 1]


def _kept(runs: Mapping[str, Run]) -> tuple[dict[str, list[Sample]], list[str]]:
    """The evenly spaced pictures of each run, and what is to be said of runs without any."""
    kept, notes = {}, []
    for letter, run in runs.items():
        try:
            kept[letter] = [sample for sample in samples(run) if sample.end == EVEN]
        except DAMAGES as error:
            notes.append(f"{letter}: its pictures are damaged ({type(error).__name__}).")
            continue
        if not kept[letter]:
            notes.append(f"{letter} keeps no pictures to set beside others': unfinished, or of an earlier version.")
    return kept, notes


def _identity(run: Run, sample: Sample) -> tuple[Any, ...]:
    """What two runs' pictures must have in common to be the same."""
    classes = (*run.class_names, run.evidence.get("ignore_index"))
    image, truth = sample.arrays["image"], sample.arrays["truth"]
    return sample.name, classes, image.shape, image.tobytes(), truth.tobytes()


def _shared(runs: Mapping[str, Run], rows: Sequence[Mapping[str, Sample]]) -> list[Any]:
    """The rows of pictures that runs share, with what they show; empty without any."""
    if not rows:
        return []
    note = (
        "Evenly spaced validation pictures, the same for each run. The mIoU is the student's on this picture, over the "
        "classes that it has; so few pictures decide nothing."
    )
    run = runs[next(iter(rows[0]))]
    return [Text([note]), _legend(run), *(_row(runs, found) for found in rows)]


def _row(runs: Mapping[str, Run], found: Mapping[str, Sample]) -> Strip:
    first = next(iter(found))
    classes, void = len(runs[first].class_names), runs[first].evidence.get("ignore_index")
    students = {letter: (sample.score, sample.arrays["student"]) for letter, sample in found.items()}
    return Strip(found[first].name, pictures.compared(found[first].arrays, students, classes, void))
