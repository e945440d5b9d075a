"""What became of an epoch's steps: means of the loss terms, and the steps that could not be taken.

Values stay on the device until somebody has to know: a wait after each step would cost a GPU its queue.
"""

import math
import time
from collections.abc import Mapping
from operator import mul
from typing import Any

import torch
from torch import Tensor

from kd.data.loading import Batch
from kd.errors import DivergedError
from kd.networks.precision import Precision

LOOK_EVERY = 32  # steps, where a look waits for the device
LEAST_SCALE = 2.0**-10  # of fp16's losses, which begin at 2^16: 26 overflows more than there were steps without


class Steps:
    """The steps of one epoch so far; `before` is what `plain` gave of the part that was done before a stop.

    `batch_size` is that of each whole batch, where a batch that is noted is one process's part of it.
    """

    def __init__(self, epoch: int, precision: Precision, skip: bool = False, before: Mapping[str, Any] | None = None,
                 batch_size: int | None = None) -> None:  # fmt: skip
        self.epoch, self.precision, self.skip, self.batch_size = epoch, precision, skip, batch_size
        self.values: dict[str, list[float]] = {}
        self.sizes: list[int] = []
        self.skipped = self.overflows = 0
        self._earlier = 0.0
        if before:
            self.values = {name: list(values) for name, values in before["values"].items()}
            self.sizes, self._earlier = list(before["sizes"]), before["seconds"]
            self.skipped, self.overflows = before["skipped"], before["overflows"]
        self._new: list[tuple[int, list[Tensor], list[dict[str, Tensor]], Tensor]] = []
        self._begun = time.perf_counter()
        self._every = 1 if skip or precision.device.type == "cpu" else LOOK_EVERY

    @property
    def images(self) -> int:
        return sum(self.sizes)

    def seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._begun

    def taken(self, step: int, batches: list[Batch], terms: list[dict[str, Tensor]], norm: Tensor) -> bool:
        """Note a step; False where it is known already that it was left out."""
        self._new.append((step, [batch.indices for batch in batches], terms, norm))
        if len(self._new) < self._every:
            return True
        left_out = self.skipped
        self.check()
        return self.skipped == left_out

    def check(self) -> None:
        """Look at the steps since the last look.

        Raises:
            DivergedError: one of them is not finite, and such steps are not to be left out.
        """
        new, self._new = self._new, []
        if not new:
            return
        rows = [torch.stack([norm, *(value for each in terms for value in each.values())]) for _, _, terms, norm in new]
        for (step, indices, terms, _), row in zip(new, [row.tolist() for row in rows], strict=True):
            norm, figures = row[0], iter(row[1:])
            self._count(step, indices, norm, [{name: next(figures) for name in each} for each in terms])

    def _count(self, step: int, indices: list[Tensor], norm: float, terms: list[dict[str, float]]) -> None:
        finite = all(math.isfinite(each["loss"]) for each in terms)
        if finite and not math.isfinite(norm) and self.precision.name == "fp16":
            self.overflows += 1  # the scale was too high for this step's gradients; it has been lowered
        elif not (finite and math.isfinite(norm)):
            if not self.skip:
                raise self._diverged(step, indices, norm, terms)
            self.skipped += 1
            return
        for samples, each in zip(indices, terms, strict=True):
            self.sizes.append(self.batch_size or len(samples))
            for name, value in each.items():
                self.values.setdefault(name, []).append(value)

    def _diverged(self, step: int, indices: list[Tensor], norm: float, terms: list[dict[str, float]]) -> DivergedError:
        wrong = {f"train/{name}": value for each in terms for name, value in each.items() if not math.isfinite(value)}
        shown = wrong or {"the norm of the gradient": norm}
        return DivergedError(
            f"{' and '.join(f'{name} is {value}' for name, value in shown.items())} in epoch {self.epoch}, step "
            f"{step}; lower optimizer.lr, train in trainer.precision=fp32 (it was {self.precision.name}), or leave "
            "such steps out with trainer.nonfinite=skip",
            self.epoch,
            step,
            torch.cat(indices).tolist(),
            {"gradient_norm": norm, "batches": terms},
        )

    def means(self, scale: float = 1.0) -> dict[str, float]:
        """Means over the epoch's batches, weighted by their size, and how many steps were left out.

        `scale` is the loss scale of fp16 that the epoch ended with.

        Raises:
            DivergedError: as `check` does, or no step could be taken: all left out, or no scale is small enough.
        """
        self.check()
        if not self.sizes or scale < LEAST_SCALE:
            raise DivergedError(
                f"no step of epoch {self.epoch} could be taken: every loss or gradient was not finite; lower "
                f"optimizer.lr, or train in trainer.precision=fp32 (it was {self.precision.name})",
                self.epoch,
            )
        found = {name: math.fsum(map(mul, values, self.sizes)) / self.images for name, values in self.values.items()}
        found |= {"skipped_steps": self.skipped} if self.skip else {}
        return found | ({"overflows": self.overflows} if self.precision.name == "fp16" else {})

    def plain(self) -> dict[str, Any]:
        """The steps so far as JSON; floats come back from it bit for bit."""
        self.check()
        return {
            "values": {name: list(values) for name, values in self.values.items()},
            "sizes": list(self.sizes), "seconds": self.seconds(),
            "skipped": self.skipped, "overflows": self.overflows,
        }  # fmt: skip
