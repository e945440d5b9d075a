"""How long networks take on this machine: all of them in turn, round by round, so that none has the quiet moments."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kd.network import Network
from kd.precision import Precision

WARM_UP = 3  # rounds that do not count

#: What the pair B3 -> B0 is said to bring: times as fast as the teacher, and its share of the teacher's parameters.
FASTER, SMALLER = 2.3, 0.5


@dataclass(frozen=True)
class Contestant:
    """Something that turns N x 3 x H x W uint8 images into logits, and what is known of it."""

    name: str
    answer: Callable[[np.ndarray], Any]
    parameters: int | None = None
    file_bytes: int | None = None
    miou: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a batch takes: the median, and the tenth and ninetieth percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        low, middle, high = np.percentile(seconds, [10, 50, 90]) * 1000
        return cls(float(middle), float(low), float(high))


def measured(
    contestants: Sequence[Contestant], batches: Sequence[int], size: tuple[int, int], rounds: int
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each (contestant, batch size) in each round; the images are noise, which takes as long as any."""
    noise = np.random.default_rng(0)
    images = {batch: noise.integers(0, 256, (batch, 3, *size), dtype=np.uint8) for batch in batches}
    seconds: dict[tuple[str, int], list[float]] = {(each.name, batch): [] for batch in batches for each in contestants}
    for turn in range(WARM_UP + rounds):
        for batch in batches:
            for each in contestants:
                started = time.perf_counter()
                each.answer(images[batch])
                if turn >= WARM_UP:
                    seconds[each.name, batch].append(time.perf_counter() - started)
    return seconds


def times_faster(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median over the rounds of how many times as fast one is as the other."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def torch_answer(network: Network, precision: Precision) -> Callable[[np.ndarray], Any]:
    """A network as a contestant, from numpy to numpy as the others."""
    placed = precision.place(network).eval()

    def answer(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), precision.autocast():
            return placed(torch.from_numpy(images).to(precision.device)).float().cpu().numpy()

    return answer


def verdict(teacher: Contestant, student: Contestant, seconds: Mapping[tuple[str, int], Sequence[float]]) -> list[str]:
    """What was promised of a small student, and whether it holds here: a line each."""
    faster = times_faster(seconds[teacher.name, 1], seconds[student.name, 1])
    lines = [f"{FASTER:g} times as fast as the teacher: {_met(faster >= FASTER)} ({faster:.2f} times, batch 1)"]
    if teacher.parameters and student.parameters:
        share = student.parameters / teacher.parameters
        lines.append(f"half the teacher's size: {_met(share <= SMALLER)} ({share:.2f} of its parameters)")
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "not met"
