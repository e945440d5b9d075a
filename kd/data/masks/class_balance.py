"""How many pixels of each class the training masks have, and what follows: class weights, and pictures to repeat."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kd.data.source import Source
from kd.system.resources import cores

ENET = 1.02  # the constant c of the weights: no weight is above 1 / ln(c), 50.5

_known: dict[str, "ClassBalance"] = {}  # by the data's fingerprint


@dataclass(frozen=True)
class ClassBalance:
    """The valid pixels of each class in each training mask, N x labels."""

    class_names: tuple[str, ...]
    pixels: np.ndarray

    @property
    def shares(self) -> dict[str, float]:
        """The share of each class in the valid pixels of all masks."""
        counts = self.pixels.sum(axis=0)
        return dict(zip(self.class_names, (counts / max(counts.sum(), 1)).tolist(), strict=True))

    @property
    def presence(self) -> dict[str, float]:
        """The share of pictures that each class is in."""
        return dict(zip(self.class_names, (self.pixels > 0).mean(axis=0).tolist(), strict=True))

    def weights(self) -> dict[str, float]:
        """The weight of each class, 1 / ln(1.02 + its share of the pixels): from 1.4 to 50.5.

        Reference: Paszke, Chaurasia, Kim, Culurciello, "ENet", arXiv 1606.02147, section 5.2.
        """
        return {name: inverse_log(share) for name, share in self.shares.items()}

    def repeats(self, share: float) -> tuple[float, ...]:
        """How often each picture comes in relation to others: max of sqrt(share / presence) over its classes, or 1.

        Reference: Gupta, Dollar, Girshick, "LVIS", arXiv 1908.03195, section 5.1, "repeat factor sampling".
        """
        presence = np.array(list(self.presence.values()))
        of_class = np.sqrt(share / np.where(presence > 0, presence, np.inf)).clip(min=1)
        return tuple(np.where(self.pixels > 0, of_class, 1.0).max(axis=1).tolist())


def inverse_log(share: float) -> float:
    """ENet's weight of a class that has a `share` of all pixels.

    >>> [round(inverse_log(share), 2) for share in (1.0, 0.5, 0.01, 0.0)]
    [1.42, 2.39, 33.83, 50.5]
    """
    return 1 / math.log(ENET + share)


def class_balance(source: Source) -> ClassBalance:
    """Count the pixels of all training masks, at their own size; once per process and data set.

    Raises:
        DataError: a mask cannot be read.
    """
    key = source.fingerprint()
    if key not in _known:
        with ThreadPoolExecutor(min(8, cores())) as pool:  # decoding leaves the interpreter's lock
            counts = list(pool.map(lambda index: _counted(source, index), range(source.size("train"))))
        _known[key] = ClassBalance(source.class_names, np.stack(counts))
    return _known[key]


def _counted(source: Source, index: int) -> np.ndarray:
    return np.bincount(source.mask("train", index).ravel(), minlength=256)[: len(source.class_names)]


def weight_line(balance: ClassBalance, weights: Mapping[str, float]) -> str:
    """Each class's share of the pixels and its weight, in one line."""
    each = ", ".join(f"{name} {_percent(balance.shares[name])} x {weight:.3g}" for name, weight in weights.items())
    return f"{each} (share of the pixels, weight 1 / ln({ENET} + share))"


def repeat_line(balance: ClassBalance, share: float) -> str:
    """How many pictures come more often than others, and for which classes, in one line."""
    rare = [f"{name} {_percent(found)}" for name, found in balance.presence.items() if 0 < found < share]
    if not rare:
        return f"no class is in less than {_percent(share)} of the pictures, so all come equally often"
    factors = balance.repeats(share)
    often = sum(factor > 1 for factor in factors)
    return (
        f"{often} of {len(factors)} pictures come up to {max(factors):.3g} times as often as the others: "
        f"{', '.join(rare)} (share of the pictures, below {_percent(share)})"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
