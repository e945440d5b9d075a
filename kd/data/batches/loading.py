"""Batches whose content depends on (seed, epoch, position) only, never on how many workers load them.

The sampler hands (view, indices) to the workers, one batch at a time, so workers are stateless and persist across
epochs. A batch is skipped by not requesting it. Pictures without masks come beside the labelled samples of a batch,
which are the same with and without them. The DataLoader has a generator of its own: it would otherwise draw from
the global one, and a resumed run would differ. A UserError is returned as a value, so that it reaches the caller
without a worker's traceback around it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kd.data.batches.batch import Batch
from kd.data.batches.order import Order
from kd.data.batches.unlabelled import BatchSize, Part, Passes
from kd.data.cache import Samples
from kd.data.layout.naming import UNLABELLED
from kd.data.numbers import whole_number
from kd.data.source import Source
from kd.data.views.augmentation import Augmentation
from kd.data.views.windows import Windows
from kd.errors import DataError, UserError
from kd.system import signals
from kd.system.world import SOLO, World

UNAUGMENTED = -1

# Two lines of torch's about cores, wherever more workers are asked for than there are cores.
warnings.filterwarnings("ignore", message="This DataLoader will create")


class StoredAnswers(Protocol):
    """A teacher's stored logits or features, such as `kd.distillation.logit_cache.LogitCache`."""

    def read(self, view: int, indices: Sequence[int]) -> torch.Tensor | None:
        """Those of a batch, as they are stored, B of them; None unless all of them are."""


#: What is stored of each split: logits, then features, if any are asked for.
Stored = Mapping[str, Sequence[StoredAnswers]]


@dataclass(frozen=True)
class Loading:
    """How batches are loaded.

    Attributes:
        workers: worker processes; 0 loads in the process that trains.
        pin_memory: whether batches are copied into page-locked memory.
        world: the training processes that share the batches.
    """

    workers: int = 0
    pin_memory: bool = False
    world: World = SOLO


IN_PROCESS = Loading()


Request = list[Part]  # of one batch: the labelled samples, then the pictures without masks


class TrainLoader:
    """Augmented training batches in an order that is a pure function of (seed, epoch), by `Order`.

    An incomplete last batch is dropped, since batch normalisation over a few leftover samples is noise, unless it is
    the only one. With several processes, each loads its share of every batch.

    Args:
        batch_size: samples in a batch, over all processes; a number is that of labelled ones alone.
        order: the order of the labelled samples; a number is the seed of one in which each comes once.
        views: number of different views of a sample; epoch e uses view e modulo this. None: a new view in every epoch.
        stored: by split, where batches get their `answers` from.
    """

    def __init__(self, source: Source | Samples, augmentation: Augmentation, batch_size: int | BatchSize,
                 order: int | Order, loading: Loading = IN_PROCESS, views: int | None = None,
                 stored: Stored | None = None) -> None:  # fmt: skip
        asked = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
        whole_number("batch_size", asked.labelled, 1)
        if views is not None:
            whole_number("views", views, 1)
        self._order = order if isinstance(order, Order) else Order(order)
        self.world, self._views = loading.world, views
        self._samples, pictures = source.size("train"), source.unlabelled_size() if asked.unlabelled else 0
        self._size = BatchSize(min(self._samples, asked.labelled), min(pictures, asked.unlabelled))
        self._pictures = (
            Passes(pictures, self._size.unlabelled, self._order.seed, views) if self._size.unlabelled else None
        )
        self._requests: list[Request] = []
        self._begun, self._prepared = -1, False  # the last epoch that was asked for, and whether only in advance
        self._loader = _data_loader(_Batches(source, augmentation, stored), self._requests, loading)

    def steps(self) -> int:
        """Batches in an epoch: those of the labelled samples."""
        return max(1, self._samples // self._size.labelled)

    def batch_size(self) -> BatchSize:
        """Samples in each batch, over all processes."""
        return self._size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without loading the first `start`; one epoch at a time."""
        whole_number("start", start, 0, self.steps())
        if not (self._prepared and (epoch, start) == (self._begun, 0)):
            self._fill(epoch, start)
        self._prepared = False
        yield from _batches_of(self._loader, self._iterator)

    def prepare_next(self, epochs: int) -> None:
        """Let idle workers load the first batches of the next of `epochs` epochs, while the last one is evaluated."""
        if self._loader.num_workers and not self._prepared and 0 <= self._begun < epochs - 1:
            self._fill(self._begun + 1, 0)
            self._prepared = True

    def _fill(self, epoch: int, start: int) -> None:
        batches = _slices(self._order.epoch(epoch, self._samples), self._size.labelled)[: self.steps()]
        view = epoch if self._views is None else epoch % self._views
        first = epoch * self.steps()
        self._requests[:] = [
            self._request(Part("train", view, batches[step]), first + step) for step in range(start, len(batches))
        ]
        self._begun, self._iterator = epoch, _begun(self._loader)

    def _request(self, labelled: Part, step: int) -> Request:
        """This process's share of a batch, at a step counted over all epochs."""
        parts = [labelled] if self._pictures is None else [labelled, self._pictures.part(step)]
        shares = [part._replace(indices=list(self.world.share(part.indices))) for part in parts]
        return [part for part in shares if part.indices]


class EvalLoader:
    """Every sample of a split once, in order, unaugmented; its length is the number of batches in the split.

    With several processes, whole batches are dealt out among them in turn. Pictures of their own sizes (fit=crop) come
    one by one, to be seen through `windows`, `batch_size` of them at a time; else, or if they are seen `whole`,
    `windows` is None.
    """

    def __init__(self, source: Source | Samples, split: str, batch_size: int, loading: Loading = IN_PROCESS,
                 whole: bool = False) -> None:  # fmt: skip
        whole_number("batch_size", batch_size, 1)
        sizing = _settings_of(source).sizing
        windowed = sizing.crops and not whole
        self.windows = Windows(sizing.image_size, sizing.window_overlap, batch_size) if windowed else None
        batches = _slices(list(range(source.size(split))), 1 if sizing.crops else batch_size)
        requests = [[Part(split, UNAUGMENTED, batch)] for batch in batches]
        self.world, self._batches = loading.world, len(requests)
        self._loader = _data_loader(_Batches(source), list(self.world.deal(requests)), loading)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        return _batches_of(self._loader, _begun(self._loader))


def _settings_of(source: Source | Samples) -> Source:
    return source if isinstance(source, Source) else source.source


class _Batches(Dataset[Batch | UserError]):
    """Maps requests to batches, inside the workers."""

    def __init__(self, source: Source | Samples, augmentation: Augmentation | None = None,
                 stored: Stored | None = None) -> None:  # fmt: skip
        self._source, self._augmentation, self._stored = source, augmentation, stored or {}
        self._settings = _settings_of(source)

    def __getitem__(self, request: Request) -> Batch | UserError:
        try:
            batches = [self._batch(part) for part in request]
        except UserError as error:
            return error.with_traceback(None)
        return batches[0] if len(batches) == 1 else replace(batches[0], unlabelled=batches[1])

    def _batch(self, part: Part) -> Batch:
        samples = [self._sample(part, index) for index in part.indices]
        images, masks = (np.stack(arrays) for arrays in zip(*samples, strict=True))
        padding = self._settings.padding
        return Batch(
            images=torch.from_numpy(self._settings.pixels.taken(images)).permute(0, 3, 1, 2),
            masks=torch.from_numpy(self._settings.voided(masks))[: 0 if part.split == UNLABELLED else None],
            indices=torch.tensor(part.indices, dtype=torch.int64),
            view=part.view,
            answers=self._answers(part),
            content=None if padding is None else torch.from_numpy(masks != padding),
        )

    def _answers(self, part: Part) -> tuple[torch.Tensor, ...] | None:
        found = []
        for stored in self._stored.get(part.split, ()):
            if (answer := stored.read(part.view, part.indices)) is None:
                return None
            found.append(answer)
        return tuple(found) or None

    def _sample(self, part: Part, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._source.read(part.split, index)
        if self._augmentation is None:
            return image, mask
        # ~index is -1, -2, ...: no picture without a mask has the random draws of a labelled sample.
        return self._augmentation(image, mask, part.view, ~index if part.split == UNLABELLED else index)


def _data_loader(batches: _Batches, requests: list[Request], loading: Loading) -> "DataLoader[Batch | UserError]":
    """A DataLoader over `requests`, a list that may be refilled between epochs: the main process reads it."""
    whole_number("workers", loading.workers, 0)
    return DataLoader(
        batches,
        batch_size=None,  # a request is a whole batch already
        sampler=requests,
        collate_fn=_unchanged,
        num_workers=loading.workers,
        persistent_workers=loading.workers > 0,
        pin_memory=loading.pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Limit OpenCV to one thread, since workers are the parallelism, and leave signals to the main process."""
    import cv2

    cv2.setNumThreads(0)
    signals.leave_to_main_process()


def _begun(loader: "DataLoader[Batch | UserError]") -> Iterator[Batch | UserError]:
    """The loader's batches, of which its workers load the first; starts the workers, the first time."""
    with signals.blocked():
        return iter(loader)


def _batches_of(loader: "DataLoader[Batch | UserError]", batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
    """The batches; a UserError from a worker is raised here."""
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                _shut_down_workers(loader)
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a data loading worker was killed ({str(error).splitlines()[0]}), usually for lack of memory; lower "
            "trainer.workers",
            page="remedies",
        ) from error


def _shut_down_workers(loader: Any) -> None:
    """Shut the workers down now; left to the garbage collector, torch waits 5 s for each."""
    iterator, loader._iterator = loader._iterator, None
    if loader.num_workers and iterator is not None:
        iterator._shutdown_workers()


def _slices(indices: Sequence[int], length: int) -> list[list[int]]:
    """`indices` in slices of `length`; the last may be shorter."""
    return [list(indices[first : first + length]) for first in range(0, len(indices), length)]
