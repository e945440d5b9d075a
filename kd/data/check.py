"""Every sample of every split, looked at once: all that is wrong with the data, in one go.

Errors are what training would stop at or be misled by; warnings are for a person to judge. Pictures are compared by
their decoded pixels, so that a copy is found under another name or format; a copy that was compressed anew is not.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kd.data.inspection import Look, Problem, looks_at, place, root_of, told
from kd.data.source import SPLITS, Source
from kd.errors import shown

RARE = 0.01  # of a split's valid pixels: below it a class is worth a warning


@dataclass
class Split:
    """What the samples of one split have in common; `classes` and what follows is empty where no mask was read.

    Attributes:
        classes: for each class, its pixels and the images that it occurs in.
        void: pixels of `ignore_index`.
        only_background: masks without a pixel of any class but the first.
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
    """All that was found out about a data set."""

    splits: dict[str, Split]
    errors: list[Problem]
    warnings: list[Problem]


def check(
    source: Source,
    headers: bool = False,
    workers: int | None = None,
    watch: Callable[[Iterable[Look], int], Iterable[Look]] = lambda looks, total: looks,
) -> Report:
    """Look at every sample of `source`; with `headers` at the files' headers only.

    `workers` processes read (one per core); `watch` is handed the looks as they come, and how many there will be.
    Raises DataError where there is no data to look at.
    """
    root = root_of(source)
    whole, faults = source.sound()
    problems = [Problem(fault.kind, fault.split, place(fault.file, root), told(fault.error, root)) for fault in faults]
    todo = [(split, index) for split in SPLITS for index in range(whole.size(split))]
    looks = list(watch(looks_at(whole, todo, headers, workers or os.cpu_count() or 1), len(todo)))
    splits = {split: _summed(source, [look for look in looks if look.split == split]) for split in SPLITS}
    shared, twice = _copies(looks)
    return Report(
        splits,
        errors=[*problems, *(problem for look in looks for problem in look.problems), *shared],
        warnings=[*twice, *_void(looks), *_rare(splits)],
    )


def _copies(looks: Sequence[Look]) -> tuple[list[Problem], list[Problem]]:
    """Pictures that an earlier split has too, and pictures that their own split has already."""
    first: dict[bytes, dict[str, Look]] = {}
    shared, twice = [], []
    for look in looks:
        if look.digest is None:
            continue
        seen = first.setdefault(look.digest, {})
        other = next((seen[split] for split in seen if split != look.split), seen.get(look.split))
        seen.setdefault(look.split, look)
        if other is None:
            continue
        says = f"{shown(look.file)} is the same picture as {shown(other.file)}"
        if other.split == look.split:
            twice.append(Problem("twice", look.split, look.file, f"{says}: it counts twice in {look.split}"))
        else:
            says = f"{says}: {other.split} and {look.split} must share none, remove one"
            shared.append(Problem("two_splits", look.split, look.file, says))
    return shared, twice


def _void(looks: Iterable[Look]) -> list[Problem]:
    return [
        Problem("void", look.split, look.file, f"{shown(look.file)} has a mask of nothing but data.ignore_index")
        for look in looks
        if look.pixels and not any(look.pixels[:-1])
    ]


def _rare(splits: dict[str, Split]) -> Iterator[Problem]:
    """Classes that a split has not, or hardly any of."""
    for split, found in splits.items():
        for name, figures in found.classes.items():
            if not figures["pixels"]:
                yield Problem("absent_class", split, "", f"class {shown(name)} never occurs in {split}")
            elif found.share(name) < RARE:
                says = f"class {shown(name)} is {found.share(name):.2%} of {split}'s pixels"
                yield Problem("rare_class", split, "", f"{says}, in {figures['images']} of {found.pairs} images")


def _summed(source: Source, looks: Sequence[Look]) -> Split:
    """What the looks at one split add up to."""
    found = Split(pairs=len(looks))
    found.sizes.update(f"{look.size[1]}x{look.size[0]}" for look in looks if look.size)
    for which, counter in enumerate((found.images, found.masks)):
        counter.update(form for look in looks for form in look.formats[which : which + 1] if form)
    counts = np.array([look.pixels for look in looks if look.pixels], dtype=np.int64)
    if len(counts):
        pixels, images = counts.sum(axis=0).tolist(), (counts > 0).sum(axis=0).tolist()
        names = enumerate(source.class_names)
        found.classes = {name: {"pixels": pixels[index], "images": images[index]} for index, name in names}
        found.void = pixels[-1]
        found.only_background = int(((counts[:, 0] > 0) & ~counts[:, 1:-1].any(axis=1)).sum())
    return found
