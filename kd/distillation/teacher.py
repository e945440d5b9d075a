"""Teachers: batch in, raw logits out, live or cached, with the same call.

A teacher maps a batch to B x C x H x W float logits, without temperature: those of the labelled samples, then those of
the pictures without masks beside them. The live teacher rounds them to half precision, as the cache does, so that
caching does not change the student. It computes the two parts one after the other: the last bits of logits depend on
the batch that they are computed in, and those of the labelled samples are the same with and without other pictures.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kd.data.loading import Batch
from kd.data.unlabelled import UNLABELLED
from kd.distillation.logit_cache import LogitCache, rounded
from kd.networks.network import Segmenter
from kd.networks.precision import Precision


class Teacher(Protocol):
    """Anything that maps a batch to raw logits, B x C x H x W, of all its parts."""

    def __call__(self, batch: Batch) -> Tensor: ...


class LiveTeacher:
    """Computes logits; always in eval mode and without gradients, regardless of the student.

    `network` is a network, or a function that builds it at the first call. With `one_by_one` every sample is computed
    alone: the last bits of logits depend on the rest of the batch, so if views recur in other batches
    (`augment.views`), cached logits would differ from live ones.
    """

    def __init__(
        self, network: Segmenter | Callable[[], Segmenter], precision: Precision, one_by_one: bool = False
    ) -> None:
        self._network, self.precision, self.one_by_one = network, precision, one_by_one

    @cached_property
    def network(self) -> Segmenter:
        network = self._network if isinstance(self._network, Segmenter) else self._network()
        return network.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        return torch.cat([self.half(part) for part in batch.parts()]).float()

    @torch.no_grad()
    def half(self, batch: Batch) -> Tensor:
        """The logits of one part as they are stored, B x C x H x W float16 on the device."""
        if self.network.training:
            self.network.eval()
        images = torch.split(batch.images, 1) if self.one_by_one else (batch.images,)
        with self.precision.autocast():
            logits = [self.network(part) for part in images]
        return rounded(torch.cat(logits).float())


class CachedTeacher:
    """Returns the logits that come with a batch from the cache; computes and stores missing ones.

    A background thread stores them, one batch at a time, while the student trains. `logit_cache` is for the labelled
    samples, `unlabelled` for the pictures without masks, if there are any.
    """

    def __init__(self, live: LiveTeacher, logit_cache: LogitCache, unlabelled: LogitCache | None = None) -> None:
        self.live, self.logit_cache = live, logit_cache
        self.logit_caches = {"train": logit_cache, **({} if unlabelled is None else {UNLABELLED: unlabelled})}
        self.read, self.computed = 0, 0  # samples
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] = Future()
        self._writing.set_result(None)

    def __call__(self, batch: Batch) -> Tensor:
        caches = self.logit_caches.values()
        return torch.cat([self._of(part, cache) for part, cache in zip(batch.parts(), caches, strict=True)])

    @torch.no_grad()
    def _of(self, batch: Batch, logit_cache: LogitCache) -> Tensor:
        """The logits of one part, B x C x H x W."""
        if batch.teacher_logits is not None:
            self.read += len(batch)
            return batch.teacher_logits.float()
        half = self.live.half(batch)
        self.computed += len(batch)
        self.flush()
        if logit_cache.writable:
            self._writing = self._writer.submit(self._store, logit_cache, batch, half)
        else:
            logit_cache.refused += len(batch)
        return half.float()

    def flush(self) -> None:
        """Wait until all logits are stored."""
        self._writing.result()

    def counts(self) -> dict[str, int]:
        """The number of samples read from the cache, computed, and computed but not stored."""
        self.flush()
        not_stored = sum(logit_cache.refused for logit_cache in self.logit_caches.values())
        return {"read": self.read, "computed": self.computed, "not_stored": not_stored}

    def _store(self, logit_cache: LogitCache, batch: Batch, half: Tensor) -> None:
        logit_cache.write(batch.view, batch.indices.tolist(), half.cpu())
