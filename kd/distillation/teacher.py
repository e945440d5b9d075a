"""Teachers: batch in, raw logits out, and features where a term asks for them, live or cached, with the same call.

A teacher's answers to a batch are its B x C x H x W float logits, without temperature, then the features of its encoder
at the stages asked for, if any: of the labelled samples, then of the pictures without masks beside them. The live
teacher encodes and decodes them, as the cache does, so that caching does not change the student. It computes the two
parts one after the other: the last bits of logits depend on the batch that they are computed in, and those of the
labelled samples are the same with and without other pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor

from kd.data.batches.batch import Batch
from kd.distillation.features import Watch
from kd.distillation.logit_cache import LogitCache
from kd.distillation.logit_codec import EXACT, Codec
from kd.networks.network import Network, Segmenter
from kd.networks.precision import Backend, Precision, fused

Answers = tuple[Tensor, ...]  # B x C x H x W logits, then B x K x h x w features of each stage asked for


class Teacher(Protocol):
    """Anything that maps a batch to float answers to all its parts."""

    def __call__(self, batch: Batch) -> Answers: ...


class LiveTeacher:
    """Computes answers; always in eval mode and without gradients, regardless of the student.

    `network` is a network, or a function that builds it at the first call. With `one_by_one` every sample is computed
    alone: the last bits of logits depend on the rest of the batch, so if views recur in other batches
    (`augment.views`), cached logits would differ from live ones. `stages` are those of the encoder whose features are
    asked for, which only this project's networks have. `codec` is that of the logits; features are in half precision.
    `backend` is what torch.compile compiles the forward pass with; None: it runs as it is.
    """

    def __init__(
        self, network: Segmenter | Callable[[], Segmenter], precision: Precision, one_by_one: bool = False,
        stages: Sequence[int] = (), codec: Codec = EXACT, backend: Backend | None = None,
    ) -> None:  # fmt: skip
        self._network, self.precision, self.one_by_one, self.stages = network, precision, one_by_one, tuple(stages)
        self.codecs, self.backend = (codec, *(EXACT for _ in stages)), backend

    @cached_property
    def network(self) -> Segmenter:
        network = self._network if isinstance(self._network, Segmenter) else self._network()
        return network.requires_grad_(False).eval()

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        """The network's forward pass; the network itself, which others measure, is never compiled."""
        return self.network if self.backend is None else fused(self.network, self.backend)

    def __call__(self, batch: Batch) -> Answers:
        return self.decode([self.encoded(part) for part in batch.parts()], batch)

    def decode(self, parts: Sequence[Answers], batch: Batch) -> Answers:
        """Float answers to a batch from those to its parts as they are stored, on the device."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return tuple(codec.decode(each, size) for codec, each in zip(self.codecs, _joined(parts), strict=True))

    @torch.no_grad()
    def encoded(self, batch: Batch) -> Answers:
        """The answers to one part as they are stored, on the device.

        In the memory layout of stored ones, too: the last bits of a sum over them depend on it.
        """
        if self.network.training:
            self.network.eval()
        images = torch.split(batch.images, 1) if self.one_by_one else (batch.images,)
        answers: list[Answers]
        with self.precision.autocast():
            if not self.stages:
                answers = [(self._forward(part),) for part in images]
            else:
                with Watch(cast(Network, self.network), self.stages) as watch:
                    answers = [(self._forward(part), *watch.take()) for part in images]
        return tuple(codec.encode(each) for codec, each in zip(self.codecs, _joined(answers), strict=True))


class CachedTeacher:
    """Returns the answers that come with a batch from the cache; computes and stores missing ones.

    A background thread stores them, one batch at a time, while the student trains. `caches` are those of the labelled
    samples (split train) and of the pictures without masks, if there are any: for the logits, then for the features.
    """

    def __init__(self, live: LiveTeacher, caches: Mapping[str, Sequence[LogitCache]]) -> None:
        self.live, self.caches = live, caches
        self.read, self.computed = 0, 0  # samples
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] = Future()
        self._writing.set_result(None)

    def __call__(self, batch: Batch) -> Answers:
        parts = zip(batch.parts(), self.caches.values(), strict=False)
        return self.live.decode([self._of(part, caches) for part, caches in parts], batch)

    def _of(self, batch: Batch, caches: Sequence[LogitCache]) -> Answers:
        """The answers to one part, as they are stored."""
        if batch.answers is not None:
            self.read += len(batch)
            return batch.answers
        encoded = self.live.encoded(batch)
        self.computed += len(batch)
        self.flush()
        if caches[0].writable:
            self._writing = self._writer.submit(self._store, caches, batch, encoded)
        else:
            caches[0].refused += len(batch)
        return encoded

    def flush(self) -> None:
        """Wait until all answers are stored."""
        self._writing.result()

    def counts(self) -> dict[str, int]:
        """The number of samples read from the cache, computed, and computed but not stored."""
        self.flush()
        not_stored = sum(max(cache.refused for cache in caches) for caches in self.caches.values())
        return {"read": self.read, "computed": self.computed, "not_stored": not_stored}

    def _store(self, caches: Sequence[LogitCache], batch: Batch, encoded: Answers) -> None:
        for cache, answer in zip(caches, encoded, strict=True):
            cache.write(batch.view, batch.indices.tolist(), answer.cpu())


def _joined(parts: Sequence[Answers]) -> Answers:
    """Answers to several samples as one."""
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
