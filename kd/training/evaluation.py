"""Evaluation of a network over a split: always in eval mode, without augmentation, at temperature 1."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from operator import mul

import torch
from torch import Tensor

from kd.data.loading import EvalLoader
from kd.distillation.task import cross_entropy
from kd.errors import UserError
from kd.networks.network import Segmenter
from kd.networks.precision import Precision
from kd.system.world import World
from kd.training.diagnostics import NOT_COUNTED, Diagnostics
from kd.training.metrics import Confusion, predict_labels


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a network over a whole split.

    Attributes:
        loss: cross-entropy with the ground truth, nats per valid pixel: comparable between recipes.
        confusion: counts of (true, predicted) labels over the split.
        labels: the predictions, a B x H x W uint8 CPU tensor per batch, if requested.
        agreement: fraction of valid pixels whose label is the reference's; None without a reference.
    """

    loss: float | None
    confusion: Confusion
    labels: list[Tensor]
    agreement: float | None

    def metrics(self, class_names: Sequence[str]) -> dict[str, float | None]:
        """loss, what `Confusion.summary` names and, with a reference, teacher_agreement."""
        agreement = {} if self.agreement is None else {"teacher_agreement": self.agreement}
        return {"loss": self.loss, **self.confusion.summary(class_names), **agreement}


@torch.no_grad()
def evaluate(network: Segmenter, loader: EvalLoader, precision: Precision, ignore_index: int | None,
             reference: Sequence[Tensor] | None = None, keep_labels: bool = False,
             diagnostics: Diagnostics | None = None) -> Evaluation:  # fmt: skip
    """Evaluate a network over every sample of a loader.

    `reference` is another network's `labels` over the same loader; every batch is added to `diagnostics`. The processes
    of the loader's world evaluate different batches, and all return the same result, bit for bit that of one process.
    """
    sums, kept, error, world = _Sums(len(network.class_names), ignore_index, precision.device), [], None, loader.world
    try:
        with _eval_mode(network):
            for index, batch in zip(world.deal(range(len(loader))), loader, strict=True):
                batch = batch.to(precision.device)
                with precision.autocast():
                    logits = network(batch.images)
                labels = predict_labels(logits)
                sums.add(logits, labels, batch.masks, None if reference is None else reference[index])
                if keep_labels:
                    kept.append(labels.cpu())
                if diagnostics is not None:
                    diagnostics.add(index, logits, labels, batch.masks)
    except UserError as failed:
        error = failed
    world.agree(error)
    loss = sums.gather(world, len(loader))
    if diagnostics is not None:
        diagnostics.gather(world, len(loader))
    all_labels = world.collect(kept, len(loader)) if keep_labels else []
    agreement = None if reference is None else sums.agreement.accuracy()
    return Evaluation(loss, sums.confusion, all_labels, agreement)


@contextmanager
def _eval_mode(network: Segmenter) -> Iterator[None]:
    """Put a network in eval mode, and back into its previous mode after the block."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


class _Sums:
    """Sums over the batches of a split: loss, confusion with the truth, agreement with a reference."""

    def __init__(self, labels: int, ignore_index: int | None, device: torch.device) -> None:
        self.ignore_index = ignore_index
        self.confusion = Confusion(labels, ignore_index, device)
        self.agreement = Confusion(labels, NOT_COUNTED, device)
        self._losses: list[Tensor] = []  # one mean per batch
        self._pixels: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor, masks: Tensor, reference: Tensor | None) -> None:
        """Add a batch, on the device without synchronising."""
        void = self.ignore_index
        valid = torch.ones_like(masks, dtype=torch.bool) if void is None else masks != void
        self._losses.append(cross_entropy(logits, masks, valid))
        self._pixels.append(valid.sum())
        self.confusion.add(labels, masks)
        if reference is not None:
            self.agreement.add(labels, reference.to(masks.device).masked_fill(~valid, NOT_COUNTED))

    def gather(self, world: World, batches: int) -> float | None:
        """Sum over the processes that share the `batches` of a split; returns the mean loss. A collective."""
        for confusion in (self.confusion, self.agreement):
            confusion.counts = world.total(confusion.counts)
        means = world.collect(list(zip(_floats(self._losses), _floats(self._pixels), strict=True)), batches)
        pixels = sum(count for _, count in means)
        return math.fsum(starmap(mul, means)) / pixels if pixels else None


def _floats(values: list[Tensor]) -> list[float]:
    return torch.stack(values).tolist() if values else []
