"""What masks must show for a training to teach and measure anything: valid pixels, foreground, the measured classes.

Without them, trainings run to their end at a loss of 0, and a metric that is always the same takes the first epoch for
the best. Masks are read until everything was seen, which is one of each split for most data.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from kd.data.source import Source
from kd.errors import DataError, shown

MEASURED = ("train", "val")
Labels = Collection[int]  # the classes that a split shows

_known: set[tuple[str, tuple[str, ...]]] = set()  # fingerprints of data that is fit, and the classes measured


def check_content(source: Source, measured: Collection[str]) -> None:
    """Raise DataError if training can learn nothing, or if val shows none of a `measured` class, at `image_size`."""
    key = (source.fingerprint(), tuple(measured))
    if key in _known:
        return
    wanted = {source.class_names.index(name) for name in measured}
    enough: dict[str, Callable[[set[int]], bool]] = {
        "train": lambda seen: bool(seen - {0}),
        "val": lambda seen: bool(seen) and seen >= wanted,
    }
    found = {split: _shown_labels(source, split, enough[split]) for split in MEASURED}
    for split, message in lacking(source, {split: small for split, (small, _) in found.items()}, measured):
        lost = found[split][1] - found[split][0]
        size = ",".join(map(str, source.image_size))
        more = f" (masks show more before they are resized: raise 'data.image_size=[{size}]')" if lost else ""
        raise DataError(f"{message}{more}")
    _known.add(key)


def lacking(source: Source, labels: Mapping[str, Labels], measured: Collection[str]) -> Iterator[tuple[str, str]]:
    """What train and val lack, each with its split, by the classes that they show."""
    names = source.class_names
    for split in MEASURED:
        if not labels[split]:
            void = source.void_option
            yield split, f"{split} has no valid pixel, its masks are all {void}: see that it says what is void, alone"
    if set(labels["train"]) == {0}:
        advice = "add pairs that show something else, or see that the options of masks say what is stored"
        yield "train", f"train shows nothing but {shown(names[0])}, so there is nothing to learn: {advice}"
    for name in measured if labels["val"] else ():
        if names.index(name) not in labels["val"]:
            advice = "add pairs with it to val" + (", or choose another objective" if len(names) > 2 else "")
            yield "val", f"class {shown(name)} never occurs in val, and objective measures it there: {advice}"


def _shown_labels(source: Source, split: str, enough: Callable[[set[int]], bool]) -> tuple[set[int], set[int]]:
    """The classes that the masks of a split show at `image_size`, and at their own size, until the first are enough."""
    small, whole = set[int](), set[int]()
    for index in range(source.size(split)):
        mask = source.mask(split, index)
        small |= _valid(source, source.sizing.mask(mask, source.padding or 0))
        if enough(small):
            break
        whole |= _valid(source, mask)
    return small, whole


def _valid(source: Source, mask: np.ndarray) -> set[int]:
    return set(np.unique(mask).tolist()) - {source.ignored, source.padding}
