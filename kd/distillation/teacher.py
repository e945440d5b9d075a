"""The teacher: batch in, raw logits out, live or from the cache by the same call.

Whoever trains a student calls a teacher with a batch and gets B x C x H x W float logits at no temperature. The live
teacher rounds them to half precision, as they are stored: a student does not know whether there is a cache.
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
    """Anything that answers a batch with raw logits, B x C x H x W."""

    def __call__(self, batch: Batch) -> Tensor: ...


class LiveTeacher:
    """Computes its answers; always in eval mode and without gradients, whatever happens to the student.

    `network` is one, or makes one when the first answer is wanted. With `one_by_one` every sample is computed alone:
    the last bits of an answer depend on the batch that it is computed in, and where views come again in other batches
    (`augment.views`), a cached answer would differ from a live one.
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
        """The answers as they are stored, B x C x H x W float16 on the device."""
        if self.network.training:
            self.network.eval()
        images = torch.split(batch.images, 1) if self.one_by_one else (batch.images,)
        with self.precision.autocast():
            answers = [self.network(part) for part in images]
        return rounded(torch.cat(answers).float())


class CachedTeacher:
    """Answers with what a batch has brought from the cache; computes and stores what it has not.

    A thread of its own stores, one batch at a time, while the student trains.
    """

    def __init__(self, live: LiveTeacher, answers: LogitCache) -> None:
        self.live, self.answers = live, answers
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
        if self.answers.writable:
            self._writing = self._writer.submit(self._store, batch, half)
        else:
            self.answers.refused += len(batch)
        return half.float()

    def flush(self) -> None:
        """Wait until everything is stored."""
        self._writing.result()

    def counts(self) -> dict[str, int]:
        """What became of the answers so far, in samples: read, computed, and of these not stored."""
        self.flush()
        return {"read": self.read, "computed": self.computed, "not_stored": self.answers.refused}

    def _store(self, batch: Batch, half: Tensor) -> None:
        self.answers.write(batch.view, batch.indices.tolist(), half.cpu())
