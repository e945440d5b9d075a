"""Batches: what is in a batch follows from (seed, epoch, position), never from how many workers load it.

The sampler hands (view, indices) to the workers, one batch at a time, so that workers carry no state and live on over
epochs. A batch is skipped by not asking for it. Torch's loader gets its own generator, as it would otherwise draw from
the global one, and a resumed run would differ. A user's error travels as a value, so that it arrives as itself and not
wrapped in a worker's traceback.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kd.data.augmentation import Augmentation
from kd.data.cache import Samples
from kd.data.random_streams import stream
from kd.data.source import Source, whole_number
from kd.errors import DataError, UserError
from kd.system.world import SOLO, World

UNAUGMENTED = -1


class StoredLogits(Protocol):
    """A teacher's logits that were computed before (`kd.distillation.logit_cache`)."""

    def read(self, view: int, indices: Sequence[int]) -> torch.Tensor | None:
        """The logits of a batch, B x C x H x W float16; None unless all of them are stored."""


@dataclass(frozen=True)
class Batch:
    """images: B x 3 x H x W uint8, RGB, channels last in memory; masks: B x H x W uint8; indices: B int64.

    `view` is the view's number, or -1 where nothing was augmented. `answers`: what a teacher has said of these views
    before, B x C x H x W float16 logits; None unless all of it is known.
    """

    images: torch.Tensor
    masks: torch.Tensor
    indices: torch.Tensor
    view: int
    answers: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's loader calls this by name."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        answers = None if self.answers is None else change(self.answers)
        return Batch(change(self.images), change(self.masks), change(self.indices), self.view, answers)


Request = tuple[int, list[int]]  # a view's number and the indices of one batch


class TrainLoader:
    """Augmented training batches in an order that is a pure function of (seed, epoch).

    Epoch e sees view e, or, where there are only so many `views`, the view e modulo their number. `answers` are what is
    known of a teacher's, and come with the batches.

    The last batch is left out if it is incomplete, as batch normalisation over a few leftover samples is noise; it is
    kept where it is the only one. Where several processes share a batch, each loads its part of it.
    """

    def __init__(
        self,
        source: Source | Samples,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        workers: int = 0,
        pin_memory: bool = False,
        world: World = SOLO,
        views: int | None = None,
        answers: StoredLogits | None = None,
    ) -> None:
        whole_number("batch_size", batch_size, 1)
        if views is not None:
            whole_number("views", views, 1)
        self._world, self._views = world, views
        self._samples, self._batch_size, self._seed = source.size("train"), batch_size, seed
        self._requests: list[Request] = []
        self._loader = _loader(_Batches(source, "train", augmentation, answers), self._requests, workers, pin_memory)

    def steps(self) -> int:
        """Batches in a whole epoch."""
        return max(1, self._samples // self._batch_size)

    def batch_size(self) -> int:
        """Samples in each batch, over all processes."""
        return min(self._samples, self._batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch; the first `start` are skipped without being loaded. One epoch at a time."""
        whole_number("start", start, 0, self.steps())
        order = stream("order", self._seed, epoch).permutation(self._samples).tolist()
        batches = _slices(order, self._batch_size)[start : self.steps()]
        view = epoch if self._views is None else epoch % self._views
        self._requests[:] = [(view, list(self._world.share(batch))) for batch in batches]
        yield from _unwrapped(self._loader)


class EvalLoader:
    """Every sample of a split once, in order, without augmentation; whole batches are dealt out among processes.

    Its length is that of the split, in batches.
    """

    def __init__(self, source: Source | Samples, split: str, batch_size: int, workers: int = 0,
                 pin_memory: bool = False, world: World = SOLO) -> None:  # fmt: skip
        whole_number("batch_size", batch_size, 1)
        requests = [(UNAUGMENTED, batch) for batch in _slices(list(range(source.size(split))), batch_size)]
        self._batches = len(requests)
        self._loader = _loader(_Batches(source, split, None), list(world.deal(requests)), workers, pin_memory)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        return _unwrapped(self._loader)


class _Batches(Dataset[Batch | UserError]):
    """Requests to batches; the part that runs in the workers."""

    def __init__(
        self,
        source: Source | Samples,
        split: str,
        augmentation: Augmentation | None,
        answers: StoredLogits | None = None,
    ) -> None:
        self._source, self._split, self._augmentation, self._answers = source, split, augmentation, answers

    def __getitem__(self, request: Request) -> Batch | UserError:
        view, indices = request
        try:
            images, masks = zip(*(self._sample(view, index) for index in indices), strict=True)
        except UserError as error:
            return error.with_traceback(None)
        return Batch(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            masks=torch.from_numpy(np.stack(masks)),
            indices=torch.tensor(indices, dtype=torch.int64),
            view=view,
            answers=None if self._answers is None else self._answers.read(view, indices),
        )

    def _sample(self, view: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._source.read(self._split, index)
        return (image, mask) if self._augmentation is None else self._augmentation(image, mask, view, index)


def _loader(
    batches: _Batches, requests: list[Request], workers: int, pin_memory: bool
) -> "DataLoader[Batch | UserError]":
    """Torch's loader over `requests`, a list that may be refilled between epochs; it is read in the main process."""
    whole_number("workers", workers, 0)
    return DataLoader(
        batches,
        batch_size=None,  # a request is a whole batch already
        sampler=requests,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """One thread each: workers are the parallelism. A signal to the whole group, such as Ctrl-C or a scheduler's
    SIGTERM, is for the main process, which finishes its step and may need another batch for that.
    """
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # out of the group: a worker that ignored SIGTERM would not end when it is told to


def _unwrapped(loader: "DataLoader[Batch | UserError]") -> Iterator[Batch]:
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                _end_workers(loader)
                raise batch
            yield cast(Batch, batch)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a loader process was ended from outside ({str(error).splitlines()[0]}), mostly for want of memory; lower "
            "trainer.workers",
            page="remedies",
        ) from error


def _end_workers(loader: Any) -> None:
    """End the loader's processes now: torch waits 5 s for each of them where it is left to the garbage collector."""
    iterator, loader._iterator = loader._iterator, None
    if loader.num_workers and iterator is not None:
        iterator._shutdown_workers()


def _slices(indices: Sequence[int], length: int) -> list[list[int]]:
    """`indices` in pieces of `length`, the last one perhaps shorter."""
    return [list(indices[first : first + length]) for first in range(0, len(indices), length)]
