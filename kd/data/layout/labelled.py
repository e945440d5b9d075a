"""Which training samples keep their masks, and how many pictures without one come beside a batch of them."""

from collections.abc import Sequence

from kd.data.numbers import is_number
from kd.data.random_streams import key
from kd.errors import DataError


def check_labelled(value: int | float | None) -> None:
    """Raise ValueError unless `value` is None, a fraction between 0 and 1, or a number of samples."""
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is not None and not count and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            f"labelled must be a fraction between 0 and 1, both excluded, or a number of training samples, 1 or more, "
            f"but got {value!r}: leave it out to keep all masks"
        )


def check_share(value: float) -> None:
    """Raise ValueError unless `value` is a share of a batch that leaves room for labelled samples."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"unlabelled_share must be a share of each batch, 0 (none) or more and below 1, but got {value!r}"
        )


def kept_and_dropped(names: Sequence[str], labelled: int | float | None) -> tuple[list[int], list[int]]:
    """The positions in `names` of the samples that keep their masks, and of the others, both in order.

    The choice follows from the names alone, so it is the same for every seed, and a smaller one is part of a larger.
    Raises DataError if there are fewer samples than `labelled`.
    """
    positions = range(len(names))
    if labelled is None or not names:
        return list(positions), []
    count = max(1, round(labelled * len(names))) if isinstance(labelled, float) else labelled
    if count > len(names):
        raise DataError(
            f"data.labelled={labelled}, but there are only {len(names)} training samples: lower it, or leave it out"
        )
    kept = set(sorted(positions, key=lambda position: key("labelled", names[position]))[:count])
    return sorted(kept), [position for position in positions if position not in kept]


def pictures_per_batch(labelled: int, share: float) -> int:
    """How many pictures without masks beside `labelled` samples make up `share` of a batch, at least one."""
    return max(1, round(labelled * share / (1 - share))) if share else 0
