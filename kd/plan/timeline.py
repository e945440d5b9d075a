"""The plan of a run, epoch by epoch: temperature, unfrozen blocks, learning rates.

Everything here is a pure function of the settings and the epoch, without state, so that training, resuming, previewing
and plotting use the same plan. No torch, so that `kd preview` is fast.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from kd.plan.schedules import Schedule, progress
from kd.plan.unfreeze import Policy


def from_one(epoch: Any) -> Any:
    """An epoch as people count them, from 1; files count from 0. What is no whole number stays as it is."""
    return epoch + 1 if isinstance(epoch, int) and not isinstance(epoch, bool) else epoch


def in_epochs(count: int) -> str:
    """A length in epochs, as people write it.

    >>> in_epochs(1), in_epochs(20)
    ('1 epoch', '20 epochs')
    """
    return f"{count} epoch{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class LearningRates:
    """Base learning rate, its decay, and the scale of the encoder blocks' rates.

    The decoder's rate decays from `lr` towards `min_lr`, which it would reach one epoch after the last: on a half
    cosine, by the formula of `torch.optim.lr_scheduler.CosineAnnealingLR` with T_max = epochs, or as the polynomial
    (1 - epoch / epochs)^power (`PolynomialLR`; Chen et al., "DeepLab", arXiv 1606.00915, section 4.1). During the first
    `warmup` epochs it is scaled by (epoch + 1) / (warmup + 1), as by `LinearLR`. Encoder block d (0 is the deepest)
    trains at decoder rate x `encoder_lr_scale` x `depth_decay`^d (Howard and Ruder, arXiv 1801.06146, section 3.2).

    >>> rates = LearningRates(lr=0.8, min_lr=0.0, encoder_lr_scale=0.5, depth_decay=0.5)
    >>> [rates.decoder(epoch, epochs=2) for epoch in range(2)]
    [0.8, 0.4]
    >>> [rates.block(depth, epoch=0, epochs=2) for depth in range(3)]
    [0.4, 0.2, 0.1]
    """

    lr: float
    min_lr: float
    encoder_lr_scale: float
    depth_decay: float = 1.0
    decay: Literal["cosine", "polynomial"] = "cosine"
    power: float = 0.9
    warmup: int = 0

    def decoder(self, epoch: int, epochs: int) -> float:
        """The decoder's learning rate at a zero-based `epoch` of a run of `epochs`."""
        if self.decay == "polynomial":
            left = (1 - epoch / epochs) ** self.power
        else:
            left = (1 + math.cos(math.pi * epoch / epochs)) / 2
        return (self.min_lr + (self.lr - self.min_lr) * left) * min(1.0, (epoch + 1) / (self.warmup + 1))

    def block(self, depth: int, epoch: int, epochs: int) -> float:
        """The learning rate of the encoder block `depth` steps above the deepest, once it is unfrozen."""
        return self.decoder(epoch, epochs) * self.encoder_lr_scale * self.depth_decay**depth


@dataclass(frozen=True)
class EpochPlan:
    """The values that one epoch trains with.

    `temperature` is None where nothing is distilled. `lr_blocks` holds one learning rate per encoder block, deepest
    first, frozen or not.
    """

    epoch: int
    temperature: float | None
    unfrozen_blocks: int
    lr_decoder: float
    lr_blocks: tuple[float, ...]

    @property
    def lr_encoder(self) -> float:
        """The rate of the deepest encoder block, which is unfrozen first."""
        return self.lr_blocks[0]

    @property
    def rates(self) -> tuple[float, ...]:
        """The decoder's rate and one per block, deepest first, in the order of `EncoderBlocks.groups`."""
        return (self.lr_decoder, *self.lr_blocks)


@dataclass(frozen=True)
class Timeline:
    """The plan of a run of `epochs` epochs for an encoder with `blocks` blocks; `timeline[e]` is epoch e's.

    `schedule` is None where nothing is distilled.

    >>> from kd.plan import Linear, Progressive
    >>> rates = LearningRates(lr=1e-3, min_lr=0, encoder_lr_scale=0.5)
    >>> plan = Timeline(Linear(4, 1), Progressive(start_epoch=1, rate=1), rates, epochs=4, blocks=2)
    >>> [(epoch.temperature, epoch.unfrozen_blocks) for epoch in plan]
    [(4.0, 0), (3.0, 1), (2.0, 2), (1.0, 2)]
    >>> plan[0].rates  # decoder, deepest block, next block
    (0.001, 0.0005, 0.0005)
    """

    schedule: Schedule | None
    unfreeze: Policy
    rates: LearningRates
    epochs: int
    blocks: int

    def __len__(self) -> int:
        return self.epochs

    def __iter__(self) -> Iterator[EpochPlan]:
        return (self[epoch] for epoch in range(self.epochs))

    def __getitem__(self, epoch: int) -> EpochPlan:
        if not 0 <= epoch < self.epochs:
            raise IndexError(f"epoch must be in 0..{self.epochs - 1}, but got {epoch}")
        schedule = self.schedule
        return EpochPlan(
            epoch=epoch,
            temperature=None if schedule is None else float(schedule(progress(epoch, self.epochs))),
            unfrozen_blocks=self.unfreeze(epoch, self.blocks),
            lr_decoder=self.rates.decoder(epoch, self.epochs),
            lr_blocks=tuple(self.rates.block(depth, epoch, self.epochs) for depth in range(self.blocks)),
        )

    def phases(self) -> list[list[EpochPlan]]:
        """The plan split into consecutive epochs with the same number of unfrozen blocks, as `kd preview` prints it.

        The end of the warm-up, where the rates stop rising, splits it, too.
        """

        def key(plan: EpochPlan) -> tuple[int, bool]:
            return plan.unfrozen_blocks, plan.epoch < self.rates.warmup

        return [list(phase) for _, phase in groupby(self, key=key)]
