"""Unfreezing policies: (zero-based epoch, number of encoder blocks) -> number of unfrozen blocks, deepest first.

A policy only counts: `kd.networks.partition` knows the parameters of a block, and the training loop freezes and
unfreezes them. The count never falls, so a block stays unfrozen.

Reference: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", arXiv 1801.06146,
section 3.3 (gradual unfreezing), with `rate` epochs instead of one between blocks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, but got {value!r}")


class Policy(ABC):
    """The number of unfrozen encoder blocks, as a pure function of the epoch."""

    @abstractmethod
    def __call__(self, epoch: int, total: int) -> int:
        """The number of unfrozen blocks, in [0, total], at a zero-based `epoch` for an encoder of `total` blocks."""

    @property
    def first_epoch(self) -> int | None:
        """The zero-based epoch at which the first block is unfrozen; None if none ever is."""
        return 0


@dataclass(frozen=True)
class Progressive(Policy):
    """One block at `start_epoch` and one more every `rate` epochs, until all, or `max_blocks`, are unfrozen.

    >>> [Progressive(start_epoch=2, rate=2)(epoch, total=3) for epoch in range(8)]
    [0, 0, 1, 1, 2, 2, 3, 3]

    Raises:
        ValueError: a value is not an integer, or is too small.
    """

    start_epoch: int = 5
    rate: int = 3
    max_blocks: int | None = None

    def __post_init__(self) -> None:
        _check_whole("start_epoch", self.start_epoch, 0)
        _check_whole("rate", self.rate, 1)
        if self.max_blocks is not None:
            _check_whole("max_blocks", self.max_blocks, 1)

    def __call__(self, epoch: int, total: int) -> int:
        most = total if self.max_blocks is None else min(total, self.max_blocks)
        return 0 if epoch < self.start_epoch else min(most, (epoch - self.start_epoch) // self.rate + 1)

    @property
    def first_epoch(self) -> int:
        return self.start_epoch


@dataclass(frozen=True)
class AtEpoch(Policy):
    """All blocks at once, at `start_epoch`.

    >>> [AtEpoch(start_epoch=2)(epoch, total=3) for epoch in range(4)]
    [0, 0, 3, 3]
    """

    start_epoch: int = 5

    def __post_init__(self) -> None:
        _check_whole("start_epoch", self.start_epoch, 0)

    def __call__(self, epoch: int, total: int) -> int:
        return 0 if epoch < self.start_epoch else total

    @property
    def first_epoch(self) -> int:
        return self.start_epoch


@dataclass(frozen=True)
class All(Policy):
    """All blocks from the first epoch on: ordinary fine-tuning."""

    def __call__(self, epoch: int, total: int) -> int:
        return total


@dataclass(frozen=True)
class Frozen(Policy):
    """No blocks: only the decoder is trained."""

    def __call__(self, epoch: int, total: int) -> int:
        return 0

    @property
    def first_epoch(self) -> None:
        return None
