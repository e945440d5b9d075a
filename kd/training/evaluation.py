"""Evaluation of a network over a split: always in eval mode, without augmentation, at temperature 1."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, starmap
from operator import mul

import torch
from torch import Tensor

from kd.data.batches.batch import Batch
from kd.data.batches.loading import EvalLoader
from kd.distillation.task import cross_entropy
from kd.errors import UserError
from kd.networks.network import Segmenter, eval_mode
from kd.networks.precision import Precision
from kd.networks.sliding import bands
from kd.system.world import World
from kd.training.diagnostics import NOT_COUNTED, Diagnostics
from kd.training.metrics import Confusion, predict_labels

#: The labels of every picture of a split: N x H x W uint8, or H x W of each where sizes differ.
Labels = Tensor | Sequence[Tensor]


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

    def pictures(self) -> Labels:
        """The `labels` of every picture."""
        sizes = {batch.shape[1:] for batch in self.labels}
        return torch.cat(self.labels) if len(sizes) == 1 else [each for batch in self.labels for each in batch]

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
    Pictures of their own sizes are seen through the loader's windows, and count with every pixel that they have.
    """
    sums, kept, error, world = _Sums(len(network.class_names), ignore_index, precision.device), [], None, loader.world

    def predict(images: Tensor) -> Tensor:
        with precision.autocast():
            return network(images)

    try:
        with eval_mode(network):
            for index, batch in zip(world.deal(range(len(loader))), loader, strict=True):
                batch = batch.to(precision.device)
                parts = []
                for rows, logits in _logits(predict, batch, loader):
                    parts.append(predict_labels(logits))
                    sums.add_loss(logits, batch.masks[:, rows], rows.start == 0)
                    if diagnostics is not None:
                        diagnostics.calibrate(logits, parts[-1], batch.masks[:, rows])
                labels = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
                sums.add_labels(labels, batch.masks, None if reference is None else reference[index])
                if keep_labels:
                    kept.append(labels.cpu())
                if diagnostics is not None:
                    diagnostics.add(index, labels, batch.masks)
    except UserError as failed:
        error = failed
    world.agree(error)
    loss = sums.gather(world, len(loader))
    if diagnostics is not None:
        diagnostics.gather(world, len(loader))
    all_labels = world.collect(kept, len(loader)) if keep_labels else []
    agreement = None if reference is None else sums.agreement.accuracy()
    return Evaluation(loss, sums.confusion, all_labels, agreement)


def _logits(predict: Callable[[Tensor], Tensor], batch: Batch, loader: EvalLoader) -> Iterator[tuple[slice, Tensor]]:
    """A batch's logits: all rows at once, or those of a single picture in bands of rows, seen through windows."""
    height, width = batch.masks.shape[1:]
    if loader.windows is None:
        yield slice(0, height), predict(batch.images)
        return
    found = bands(predict, lambda top, bottom: batch.images[:, :, top:bottom], (height, width), loader.windows)
    for top, logits in found:
        yield slice(top, top + logits.shape[2]), logits


class _Sums:
    """Sums over the batches of a split: loss, confusion with the truth, agreement with a reference."""

    def __init__(self, labels: int, ignore_index: int | None, device: torch.device) -> None:
        self.ignore_index = ignore_index
        self.confusion = Confusion(labels, ignore_index, device)
        self.agreement = Confusion(labels, NOT_COUNTED, device)
        self._losses: list[list[Tensor]] = []  # of each batch, the mean of each of its bands
        self._pixels: list[list[Tensor]] = []

    def add_loss(self, logits: Tensor, masks: Tensor, begins: bool) -> None:
        """Add the loss of a band of rows of a batch, which `begins` one; on the device without synchronising."""
        if begins:
            self._losses.append([])
            self._pixels.append([])
        valid = self._valid(masks)
        self._losses[-1].append(cross_entropy(logits, masks, valid))
        self._pixels[-1].append(valid.sum())

    def add_labels(self, labels: Tensor, masks: Tensor, reference: Tensor | None) -> None:
        """Add the labels of a batch, on the device without synchronising."""
        self.confusion.add(labels, masks)
        if reference is not None:
            valid = self._valid(masks)
            self.agreement.add(labels, reference.to(masks.device).masked_fill(~valid, NOT_COUNTED))

    def _valid(self, masks: Tensor) -> Tensor:
        void = self.ignore_index
        return torch.ones_like(masks, dtype=torch.bool) if void is None else masks != void

    def gather(self, world: World, batches: int) -> float | None:
        """Sum over the processes that share the `batches` of a split; returns the mean loss. A collective."""
        for confusion in (self.confusion, self.agreement):
            confusion.counts = world.total(confusion.counts)
        losses, counts = _floats(self._losses), _floats(self._pixels)
        dealt = [list(zip(*of_batch, strict=True)) for of_batch in zip(losses, counts, strict=True)]
        means = list(chain.from_iterable(world.collect(dealt, batches)))
        pixels = sum(count for _, count in means)
        return math.fsum(starmap(mul, means)) / pixels if pixels else None


def _floats(values: list[list[Tensor]]) -> list[list[float]]:
    """The numbers of every batch, fetched from the device at once."""
    together = list(chain.from_iterable(values))
    found = iter(torch.stack(together).tolist() if together else [])
    return [list(islice(found, len(each))) for each in values]
