"""How good a network is and what it costs: always eval mode, no augmentation, temperature 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import mul

import torch
from torch import Tensor

from kd.data.loading import EvalLoader
from kd.distillation.losses import cross_entropy
from kd.errors import UserError
from kd.networks.network import Segmenter
from kd.networks.precision import Precision
from kd.system.world import SOLO, World
from kd.training.diagnostics import NOT_COUNTED, CloseLook
from kd.training.metrics import Confusion, predict_labels


@dataclass(frozen=True)
class Evaluation:
    """A network over a whole split.

    Attributes:
        loss: cross-entropy with the ground truth, nats per valid pixel of the split: the same figure for every recipe.
        confusion: counts of (true, predicted) labels over the split.
        labels: the predictions, a B x H x W uint8 CPU tensor per batch, where they were asked for.
        agreement: fraction of valid pixels with the label that `reference` gives them; None without one.
    """

    loss: float | None
    confusion: Confusion
    labels: list[Tensor]
    agreement: float | None

    def metrics(self, class_names: Sequence[str]) -> dict[str, float | None]:
        """loss, miou, dice, iou/<class> and, where there was a reference, teacher_agreement."""
        agreement = {} if self.agreement is None else {"teacher_agreement": self.agreement}
        return {"loss": self.loss, **self.confusion.summary(class_names), **agreement}


@torch.no_grad()
def evaluate(
    network: Segmenter,
    loader: EvalLoader,
    precision: Precision,
    ignore_index: int | None,
    reference: Sequence[Tensor] | None = None,
    keep_labels: bool = False,
    world: World = SOLO,
    look: CloseLook | None = None,
) -> Evaluation:
    """Evaluate over every sample of a loader; `reference` is another network's `labels` over the same loader.

    A `look` is shown every batch.

    Several processes take whole batches in turn, as their loaders deal them, and each is given the figures of all:
    those of one process, as each batch is computed as it would be there.
    """
    was_training = network.training
    network.eval()
    labels_count = len(network.class_names)
    confusion = Confusion(labels_count, ignore_index, precision.device)
    agreement = Confusion(labels_count, NOT_COUNTED, precision.device)
    nats, pixels, kept, error = [], [], [], None
    try:
        for index, batch in zip(world.deal(range(len(loader))), loader, strict=True):
            batch = batch.to(precision.device)
            with precision.autocast():
                logits = network(batch.images)
            void = ignore_index
            valid = torch.ones_like(batch.masks, dtype=torch.bool) if void is None else batch.masks != void
            nats.append(cross_entropy(logits, batch.masks, valid))
            pixels.append(valid.sum())
            labels = predict_labels(logits)
            confusion.add(labels, batch.masks)
            if reference is not None:
                expected = reference[index].to(precision.device)
                agreement.add(labels, expected.masked_fill(~valid, NOT_COUNTED))
            if keep_labels:
                kept.append(labels.cpu())
            if look is not None:
                look.add(index, logits, labels, batch.masks)
    except UserError as failed:
        error = failed
    world.agree(error)
    network.train(was_training)
    for counted in (confusion, agreement):
        counted.counts = world.total(counted.counts)
    if look is not None:
        look.gather(world, len(loader))
    means = world.collect(list(zip(_plain(nats), _plain(pixels), strict=True)), len(loader))
    return Evaluation(
        loss=_mean_per_pixel(means),
        confusion=confusion,
        labels=world.collect(kept, len(loader)) if keep_labels else [],
        agreement=None if reference is None else agreement.accuracy(),
    )


def _plain(values: list[Tensor]) -> list[float]:
    return torch.stack(values).tolist() if values else []


def _mean_per_pixel(batches: list[tuple[float, float]]) -> float | None:
    """From a mean and a number of pixels of each batch."""
    pixels = sum(count for _, count in batches)
    return math.fsum(starmap(mul, batches)) / pixels if pixels else None
