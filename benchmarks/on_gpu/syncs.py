"""How often the host waits for the GPU within training steps: each wait empties the queue that the GPU lives on."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.on_gpu.setting import InMemory, context_of, live, pair, training
from benchmarks.on_gpu.supervise import On
from kd.data.batches.batch import Batch

SAID = "called a synchronizing CUDA operation"


class Watched(InMemory):
    """Has torch report every wait from the second batch on, until the last but one is asked for."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start)):
            if step == 1:
                torch.cuda.set_sync_debug_mode("warn")
            if step == self.steps() - 1:
                torch.cuda.set_sync_debug_mode("default")
            yield batch


def syncs(on: On) -> None:
    """Waits in the steps of the second epoch, by where they come from; without CUDA the steps run unwatched."""
    side, batch, steps = (32, 4, 1) if on.small else (256, 8, 8)
    kind = Watched if on.device == "cuda" else InMemory
    for name in ("bf16", "fp16", "fp32"):
        context = context_of(on, side, batch, 2 * batch, 1, f"trainer.precision={name}")
        student, teacher = pair(context)
        epochs = training(context, student, live(teacher, context), kind(context, steps))
        next(epochs)
        with _counted() as waits:
            next(epochs)
        on.note(**{name: dict(waits)})
        on.check(f"{name}: no wait in a training step", not waits)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """The waits that torch warns of in the block, by file and line."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            for each in said:
                if re.search(SAID, str(each.message)):
                    found[f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}"] += 1
