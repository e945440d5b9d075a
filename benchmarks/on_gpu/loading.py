"""Whether the loader keeps up: pictures from files, the shipped augmentations, 8 and 16 workers."""

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.case import bench_of, write_shapes
from benchmarks.on_gpu.setting import PAIR, SMALL_PAIR, live, pair, training
from benchmarks.on_gpu.supervise import On
from kd.data.batches.batch import Batch
from kd.experiment.builders import build_train_loader
from kd.experiment.context import RunContext

DISTINCT = 16  # pictures; the others are the same files by other names


class Timed:
    """A loader, and how long its batches were waited for."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.world, self.waited = loader, loader.world, 0.0

    def steps(self) -> int:
        return self.loader.steps()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        batches, self.waited = self.loader.epoch(epoch, start), 0.0
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - begun
            if batch is None:
                return
            yield batch


def loader(on: On, recipe: str) -> None:
    """Images per second of the loader alone, from files and from memory, and of a training; seconds it waited."""
    for workers in (0, 2) if on.small else (8, 16):
        context = _context(on, recipe, workers)
        found = {"from_files": _images_per_second(_context(on, recipe, workers, "data.cache=off"), epoch=0)}
        on.note(**{f"{workers}_workers": found})
        batches = build_train_loader(context, 0)
        _drained(batches, 0)  # fills the memory
        found["from_memory"] = _images_per_second(context, epoch=1, batches=batches)
        on.note(**{f"{workers}_workers": found})
        student, teacher = pair(_context(on, "none", 0))
        timed = Timed(batches)
        for result in islice(training(context, student, live(teacher, context), timed), 2):
            found |= {"training": result.images_per_second, "seconds": result.seconds, "waited": timed.waited}
        found["share_waited"] = found["waited"] / found["seconds"]
        on.note(**{f"{workers}_workers": found})


def _images_per_second(context: RunContext, epoch: int, batches: Any = None) -> float:
    batches = batches or build_train_loader(context, 0)
    return context.settings.trainer.batch_size * batches.steps() / _drained(batches, epoch)


def _drained(batches: Any, epoch: int) -> float:
    """Seconds of one epoch without a training; those in which workers start are counted."""
    begun = time.perf_counter()
    for _ in batches.epoch(epoch):
        pass
    return time.perf_counter() - begun


def _context(on: On, recipe: str, workers: int, *overrides: str) -> RunContext:
    side, batch, images = (64, 4, 16) if on.small else (640, 16, 512)
    return bench_of([
        f"root={on.shared / 'root'}", *(SMALL_PAIR if on.small else PAIR), "tracking=none", "data=folder",
        f"data.root={_pictures(on.shared / 'pictures', side, images)}", f"data.image_size=[{side},{side}]",
        f"augment={recipe}", f"trainer.device={on.device}", f"trainer.batch_size={batch}",
        f"trainer.workers={workers}", "trainer.precision=bf16", *overrides,
    ])  # fmt: skip


def _pictures(root: Path, side: int, images: int) -> Path:
    """A folder of so many JPEG pictures of twice the size; made once, for all items."""
    if root.exists():
        return root
    new = root.with_suffix(".new")
    write_shapes(new, 2 * side, {"train": min(DISTINCT, images), "val": 1})
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        for index in range(DISTINCT, images):
            file = new / kind / "train" / f"{index % DISTINCT:05d}.{ending}"
            os.link(file, file.with_name(f"{index:05d}.{ending}"))
    new.rename(root)
    return root
