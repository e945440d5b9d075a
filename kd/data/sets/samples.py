"""The samples of a data set that is a list of rows for each split: val, limits, and masks that are left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from kd.data.layout.labelled import kept_and_dropped
from kd.data.layout.naming import UNLABELLED
from kd.data.layout.splitting import val_stems
from kd.data.source import Source, known_split

T = TypeVar("T")


def divided(source: Source, rows: Mapping[str, Sequence[T]], name: Callable[[T], str], val_fraction: float,
            where: str) -> dict[str, list[T]]:  # fmt: skip
    """The samples of each split of `source`, and the pictures that lose their masks.

    `rows` are those of each split that the data set has; without val, a part of train becomes it, chosen by `name`.

    Raises:
        DataError: train, which `where` names, has too few rows.
    """
    train, val = rows["train"], rows.get("val")
    if val is None:
        names = [name(row) for row in train]
        held_out = val_stems(names, val_fraction, where)
        val = [row for row, each in zip(train, names, strict=True) if each in held_out]
        train = [row for row, each in zip(train, names, strict=True) if each not in held_out]
    train = source.limited(train)
    kept, dropped = kept_and_dropped([name(row) for row in train], source.labelled)
    return {
        "train": [train[index] for index in kept],
        "val": source.limited(val),
        "test": source.limited(rows.get("test", [])),
        UNLABELLED: [train[index] for index in dropped] if source.unlabelled_share else [],
    }


def sample_at(samples: Mapping[str, Sequence[T]], split: str, index: int) -> T:
    """A sample of a split; raises IndexError unless there is one."""
    found = samples[split if split == UNLABELLED else known_split(split)]
    if not 0 <= index < len(found):
        raise IndexError(f"index must be in 0..{len(found) - 1} for {split}, but got {index}")
    return found[index]
