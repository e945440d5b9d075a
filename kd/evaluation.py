"""How good a network is and what it costs: always eval mode, no augmentation, temperature 1."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import mul

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kd.close_look import NOT_COUNTED, CloseLook
from kd.data.loading import EvalLoader
from kd.errors import UserError
from kd.losses import cross_entropy
from kd.metrics import Confusion, predict_labels
from kd.network import Network, Segmenter
from kd.precision import Precision
from kd.world import SOLO, World


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


@torch.no_grad()
def latency_ms(network: Segmenter, image_size: tuple[int, int], precision: Precision, rounds: int = 11) -> float:
    """Median milliseconds from one H x W image to its logits, batch 1, after two warm-up calls."""
    was_training = network.training
    network.eval()
    image = torch.zeros(1, 3, *image_size, dtype=torch.uint8, device=precision.device)
    seconds = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        with precision.autocast():
            network(image).sum().item()  # .item() waits for the device
        seconds.append(time.perf_counter() - started)
    network.train(was_training)
    return statistics.median(seconds[2:]) * 1000


_macs: dict[tuple[object, ...], int] = {}  # they follow from the names, and a study asks often


@torch.no_grad()
def macs(network: Segmenter, image_size: tuple[int, int]) -> int | None:
    """Multiply-adds from one H x W image to its logits: of convolutions and matrix products, which are nearly all.

    Half of the operations that `torch.utils.flop_counter` counts; None of a network from elsewhere, which torch may not
    compute.
    """
    if not isinstance(network, Network):
        return None
    key = (network.settings.arch.lower(), network.settings.encoder, network.count_parameters(), image_size)
    if key not in _macs:
        was_training, device = network.training, next(network.parameters()).device
        network.eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, *image_size, dtype=torch.uint8, device=device))
        network.train(was_training)
        _macs[key] = counter.get_total_flops() // 2
    return _macs[key]
