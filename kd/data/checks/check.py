"""Check every sample of every split and report everything that is wrong with a data set.

Errors would stop or mislead training; warnings are for a person to judge. Images are compared by their decoded pixels,
so a copy is found under another name or format, but not after lossy compression.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd.data.checks.inspection import (
    InspectedSample,
    Problem,
    inspect_samples,
    relative_message,
    relative_name,
    root_of,
)
from kd.data.layout.naming import SPLITS, UNLABELLED
from kd.data.layout.split_folders import Fault
from kd.data.masks.content import MEASURED, lacking
from kd.data.source import Source
from kd.data.statistics import Statistics, combined
from kd.errors import shown
from kd.system.resources import cores

RARE = 0.01  # fraction of a split's valid pixels below which a class causes a warning


@dataclass
class Split:
    """Statistics of one split; `classes` and what follows are empty if no mask was read.

    Attributes:
        classes: for each class, its number of pixels and of images with it.
        void: the number of void pixels.
        only_background: the number of masks with no class but the first.
    """

    pairs: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    void: int = 0
    only_background: int = 0

    def share(self, name: str) -> float:
        """The fraction of the split's valid pixels that are of class `name`."""
        return self.classes[name]["pixels"] / max(1, sum(figures["pixels"] for figures in self.classes.values()))


@dataclass(frozen=True)
class Report:
    """The results of checking a data set; `unlabelled` has no masks, and its pairs are pictures.

    `statistics` are those of the training pictures' channels; None if no pixels were read.
    """

    splits: dict[str, Split]
    unlabelled: Split
    errors: list[Problem]
    warnings: list[Problem]
    statistics: Statistics | None = None


def check(
    source: Source,
    headers: bool = False,
    workers: int | None = None,
    watch: Callable[[Iterable[InspectedSample], int], Iterable[InspectedSample]] = lambda samples, total: samples,
    measured: Collection[str] = (),
) -> Report:
    """Check every sample of `source`; with `headers`, only the headers of its files.

    `workers` is the number of processes (default: one per core); `watch` wraps the iterator of inspected samples, of
    which there are `total`; `measured` are the classes that an objective names: one that val lacks is an error. Raises
    DataError if there is no data.
    """
    root = root_of(source)
    whole, faults = source.sound()
    survey = whole.survey()
    todo = [(split, index) for split in SPLITS for index in range(whole.size(split))]
    todo += [(UNLABELLED, index) for index in range(whole.unlabelled_size())]
    inspected = list(watch(inspect_samples(whole, todo, headers, workers or cores()), len(todo)))
    samples = [sample for sample in inspected if sample.split != UNLABELLED]
    pictures = inspected[len(samples) :]
    splits = {split: _summed(source, [sample for sample in samples if sample.split == split]) for split in SPLITS}
    shared, twice = _copies(samples)
    of_samples = [problem for sample in inspected for problem in sample.problems]
    judged = [*twice, *_leaks(samples, pictures), *_void(samples), *_rare(splits)]
    return Report(
        splits,
        _summed(source, pictures),
        errors=[*_relative([*faults, *survey.errors], root), *of_samples, *shared, *_lacking(source, splits, measured)],
        warnings=[*_relative(survey.warnings, root), *judged],
        statistics=combined(sample.moments for sample in samples if sample.moments),
    )


def _relative(faults: Iterable[Fault], root: Path) -> list[Problem]:
    """Faults as lines of a report, with file names relative to the root."""
    return [
        Problem(fault.kind, fault.split, relative_name(fault.file, root), relative_message(fault.error, root))
        for fault in faults
    ]


def _copies(samples: Sequence[InspectedSample]) -> tuple[list[Problem], list[Problem]]:
    """Images that also occur in an earlier split, and images that occur twice in their own split."""
    first: dict[bytes, dict[str, InspectedSample]] = {}
    shared, twice = [], []
    for sample in samples:
        if sample.digest is None:
            continue
        seen = first.setdefault(sample.digest, {})
        other = next((seen[split] for split in seen if split != sample.split), seen.get(sample.split))
        seen.setdefault(sample.split, sample)
        if other is None:
            continue
        message = f"{shown(sample.file)} is the same picture as {shown(other.file)}"
        if other.split == sample.split:
            twice.append(Problem("twice", sample.split, sample.file, f"{message}: it counts twice in {sample.split}"))
        else:
            message = f"{message}: {other.split} and {sample.split} must not share images, remove one"
            shared.append(Problem("two_splits", sample.split, sample.file, message))
    return shared, twice


def _leaks(samples: Sequence[InspectedSample], pictures: Iterable[InspectedSample]) -> Iterator[Problem]:
    """Pictures without masks that are also in val or test: a student would be taught what it is measured on."""
    held_out = {sample.digest: sample for sample in samples if sample.digest and sample.split != "train"}
    for picture in pictures:
        if picture.digest and (other := held_out.get(picture.digest)):
            message = f"{shown(picture.file)} is the same picture as {shown(other.file)}"
            more = f"a student would learn the teacher's labels of a picture of {other.split}, remove it"
            yield Problem("leak", UNLABELLED, picture.file, f"{message}: {more}")


def _void(samples: Iterable[InspectedSample]) -> list[Problem]:
    return [
        Problem("void", sample.split, sample.file, f"{shown(sample.file)} has a mask of void only")
        for sample in samples
        if sample.pixels and not any(sample.pixels[:-1])
    ]


def _lacking(source: Source, splits: dict[str, Split], measured: Collection[str]) -> list[Problem]:
    """What the masks do not show, so that nothing can be learnt or measured."""
    if not all(splits[split].classes for split in MEASURED):
        return []
    labels = {
        split: {label for label, figures in enumerate(splits[split].classes.values()) if figures["pixels"]}
        for split in MEASURED
    }
    return [Problem("content", split, "", message) for split, message in lacking(source, labels, measured)]


def _rare(splits: dict[str, Split]) -> Iterator[Problem]:
    """Classes that are missing from a split or rare in it."""
    for split, found in splits.items():
        for name, figures in found.classes.items():
            if not figures["pixels"]:
                yield Problem("absent_class", split, "", f"class {shown(name)} never occurs in {split}")
            elif found.share(name) < RARE:
                message = f"class {shown(name)} is {found.share(name):.2%} of {split}'s pixels"
                yield Problem("rare_class", split, "", f"{message}, in {figures['images']} of {found.pairs} images")


def _summed(source: Source, samples: Sequence[InspectedSample]) -> Split:
    """Statistics of the inspected samples of one split."""
    found = Split(pairs=len(samples))
    found.sizes.update(f"{sample.size[1]}x{sample.size[0]}" for sample in samples if sample.size)
    for which, counter in enumerate((found.images, found.masks)):
        counter.update(form for sample in samples for form in sample.formats[which : which + 1] if form)
    counts = np.array([sample.pixels for sample in samples if sample.pixels], dtype=np.int64)
    if len(counts):
        pixels, images = counts.sum(axis=0).tolist(), (counts > 0).sum(axis=0).tolist()
        names = enumerate(source.class_names)
        found.classes = {name: {"pixels": pixels[index], "images": images[index]} for index, name in names}
        found.void = pixels[-1]
        found.only_background = int(((counts[:, 0] > 0) & ~counts[:, 1:-1].any(axis=1)).sum())
    return found
