"""The steps of an epoch: means of the loss terms, and the steps that were skipped.

Values stay on the device until they are needed: synchronising after each step would drain a GPU's queue.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import mul
from typing import Any

import torch
from torch import Tensor

from kd.data.batches.batch import Batch
from kd.data.layout.naming import UNLABELLED
from kd.errors import DivergedError
from kd.networks.precision import Precision

CHECK_EVERY = 32  # steps, on devices where a check waits for the queue
PARTS = ("train", UNLABELLED)  # the splits of a batch's parts
LEAST_SCALE = 2.0**-10  # of fp16's losses; it starts at 2^16, so this is 26 overflows more than steps without


class StepLog:
    """The steps of one epoch so far.

    Args:
        skip: skip and count steps that are not finite, instead of raising.
        state: what `state` returned for the part of the epoch before an interruption.
        batch_size: samples in a whole batch, if the batches recorded here are one process's share of it; else 0.
    """

    def __init__(self, epoch: int, precision: Precision, skip: bool = False, state: Mapping[str, Any] | None = None,
                 batch_size: int = 0) -> None:  # fmt: skip
        self.epoch, self.precision, self.skip, self.batch_size = epoch, precision, skip, batch_size
        self.values: dict[str, list[float]] = {}
        self.sizes: list[int] = []
        self.skipped = self.overflows = 0
        self._seconds_before = self.waited = 0.0
        if state:
            self.values = {name: list(values) for name, values in state["values"].items()}
            self.sizes, self._seconds_before = list(state["sizes"]), state["seconds"]
            self.skipped, self.overflows = state["skipped"], state["overflows"]
            self.waited = state.get("waited", 0.0)  # missing in older checkpoints
        self._unchecked: list[tuple[int, list[list[Tensor]], list[dict[str, Tensor]], Tensor]] = []
        self._started = time.perf_counter()
        self._check_every = 1 if skip or precision.device.type == "cpu" else CHECK_EVERY

    @property
    def images(self) -> int:
        """Training images in the steps that were taken."""
        return sum(self.sizes)

    def seconds(self) -> float:
        """Wall time of the epoch's steps so far."""
        return self._seconds_before + time.perf_counter() - self._started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data, in `waited` seconds; without workers, as loading it."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - begun

    def record(self, step: int, batches: Sequence[Batch], terms: list[dict[str, Tensor]], norm: Tensor) -> bool:
        """Record a step: the terms of each batch's loss, and the gradient's norm.

        Returns False if the step is already known to be skipped.
        """
        self._unchecked.append((step, [[part.indices for part in batch.parts()] for batch in batches], terms, norm))
        if len(self._unchecked) < self._check_every:
            return True
        skipped = self.skipped
        self.check()
        return self.skipped == skipped

    def check(self) -> None:
        """Read the values of the steps since the last check.

        Raises:
            DivergedError: one of them is not finite, and such steps are not skipped.
        """
        new, self._unchecked = self._unchecked, []
        if not new:
            return
        rows = [torch.stack([norm, *(value for each in terms for value in each.values())]) for _, _, terms, norm in new]
        for (step, indices, terms, _), row in zip(new, [row.tolist() for row in rows], strict=True):
            norm, values = row[0], iter(row[1:])
            self._count(step, indices, norm, [{name: next(values) for name in each} for each in terms])

    def _count(self, step: int, indices: list[list[Tensor]], norm: float, terms: list[dict[str, float]]) -> None:
        finite = all(math.isfinite(each["loss"]) for each in terms)
        if finite and not math.isfinite(norm) and self.precision.name == "fp16":
            self.overflows += 1  # the loss scale was too high for this step's gradients; the scaler has lowered it
        elif not (finite and math.isfinite(norm)):
            if not self.skip:
                raise self._diverged(step, indices, norm, terms)
            self.skipped += 1
            return
        for parts, each in zip(indices, terms, strict=True):
            self.sizes.append(self.batch_size or sum(map(len, parts)))
            for name, value in each.items():
                self.values.setdefault(name, []).append(value)

    def _diverged(
        self, step: int, indices: list[list[Tensor]], norm: float, terms: list[dict[str, float]]
    ) -> DivergedError:
        wrong = {f"train/{name}": value for each in terms for name, value in each.items() if not math.isfinite(value)}
        shown = wrong or {"the norm of the gradient": norm}
        return DivergedError(
            f"{' and '.join(f'{name} is {value}' for name, value in shown.items())} in epoch {self.epoch + 1}, step "
            f"{step}; lower optimizer.lr, train in trainer.precision=fp32 (it was {self.precision.name}), or skip "
            "such steps with trainer.nonfinite=skip",
            self.epoch,
            step,
            [(split, i) for parts in indices for split, part in zip(PARTS, parts, strict=False) for i in part.tolist()],
            {"gradient_norm": norm, "batches": terms},
        )

    def means(self, scale: float = 1.0) -> dict[str, float]:
        """Means over the epoch's batches, weighted by their size, and the number of skipped steps.

        `scale` is fp16's loss scale at the end of the epoch.

        Raises:
            DivergedError: as in `check`; or no step was taken: all were skipped, or no loss scale is small enough.
        """
        self.check()
        if not self.sizes or scale < LEAST_SCALE:
            raise DivergedError(
                f"no step of epoch {self.epoch + 1} was taken: the loss or gradient of each was not finite; lower "
                f"optimizer.lr, or train in trainer.precision=fp32 (it was {self.precision.name})",
                self.epoch,
            )
        found = {name: math.fsum(map(mul, values, self.sizes)) / self.images for name, values in self.values.items()}
        found |= {"skipped_steps": self.skipped} if self.skip else {}
        return found | ({"overflows": self.overflows} if self.precision.name == "fp16" else {})

    def state(self) -> dict[str, Any]:
        """The steps so far as plain JSON, in which floats survive bit for bit."""
        self.check()
        return {
            "values": {name: list(values) for name, values in self.values.items()},
            "sizes": list(self.sizes), "seconds": self.seconds(), "waited": self.waited,
            "skipped": self.skipped, "overflows": self.overflows,
        }  # fmt: skip
