"""Teachers: batch in, raw logits out, live or cached, with the same call.

A teacher maps a batch to B x C x H x W float logits, without temperature. The live teacher rounds them to half
precision, as the cache does, so that caching does not change the student.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kd.data.loading import Batch
from kd.distillation.logit_cache import LogitCache, rounded
from kd.networks.network import Segmenter
from kd.networks.precision import Precision


class Teacher(Protocol):
    """Anything that maps a batch to raw logits, B x C x H x W."""

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
        return self.half(batch).float()

    @torch.no_grad()
    def half(self, batch: Batch) -> Tensor:
        """The logits as they are stored, B x C x H x W float16 on the device."""
        if self.network.training:
            self.network.eval()
        images = torch.split(batch.images, 1) if self.one_by_one else (batch.images,)
        with self.precision.autocast():
            logits = [self.network(part) for part in images]
        return rounded(torch.cat(logits).float())


class CachedTeacher:
    """Returns the logits that come with a batch from the cache; computes and stores missing ones.

    A background thread stores them, one batch at a time, while the student trains.
    """

    def __init__(self, live: LiveTeacher, logit_cache: LogitCache) -> None:
        self.live, self.logit_cache = live, logit_cache
        self.read, self.computed = 0, 0  # samples
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] = Future()
        self._writing.set_result(None)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        if batch.teacher_logits is not None:
            self.read += len(batch)
            return batch.teacher_logits.float()
        half = self.live.half(batch)
        self.computed += len(batch)
        self.flush()
        if self.logit_cache.writable:
            self._writing = self._writer.submit(self._store, batch, half)
        else:
            self.logit_cache.refused += len(batch)
        return half.float()

    def flush(self) -> None:
        """Wait until all logits are stored."""
        self._writing.result()

    def counts(self) -> dict[str, int]:
        """The number of samples read from the cache, computed, and computed but not stored."""
        self.flush()
        return {"read": self.read, "computed": self.computed, "not_stored": self.logit_cache.refused}

    def _store(self, batch: Batch, half: Tensor) -> None:
        self.logit_cache.write(batch.view, batch.indices.tolist(), half.cpu())
