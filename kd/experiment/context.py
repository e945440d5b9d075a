"""What teacher and student share: data and views, device, batch, processes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kd.data import Source
from kd.data.augmentation import Augmentation
from kd.data.cache import Samples, kept
from kd.data.loading import EvalLoader, TrainLoader
from kd.distillation.logit_cache import LogitCache
from kd.distillation.losses import DistillationLoss
from kd.errors import ConfigError
from kd.networks import build
from kd.networks.network import Network, Segmenter
from kd.networks.precision import Precision, choose_device, compiled, hold_memory, repeat_bit_for_bit
from kd.settings import Settings
from kd.system.signals import Stop
from kd.system.world import SOLO, World
from kd.training.diagnostics import CloseLook
from kd.training.evaluation import Evaluation, evaluate
from kd.training.loop import Recipe


@dataclass(frozen=True)
class RunContext:
    """What teacher and student share: the data and its views, the device, the batch, the processes at work on it."""

    settings: Settings
    transforms: Sequence[Any]
    precision: Precision
    workers: int
    stop: Stop = field(default_factory=Stop)
    loaders: dict[str, EvalLoader] = field(default_factory=dict)  # started once, kept for every epoch
    world: World = SOLO

    @classmethod
    def of(
        cls, settings: Settings, transforms: Sequence[Any], stop: Stop | None = None, world: World = SOLO
    ) -> "RunContext":
        """What a run's settings ask for; `stop` is who hears that the run should end.

        Raises:
            ConfigError: the device is not there, or a batch has no sample for some of the processes.
        """
        _check_shares(settings, world)
        device = choose_device(settings.trainer.device, world)
        repeat_bit_for_bit(settings.trainer.deterministic)
        if device.type == "cpu":
            hold_memory()
        workers = settings.trainer.workers
        if isinstance(workers, str):  # auto: on a CPU the cores are busy training
            cores = max(1, (os.cpu_count() or 1) // world.local_size)
            workers = min(8, cores) if device.type == "cuda" else 0
        precision = Precision(device, settings.trainer.precision, settings.trainer.channels_last)
        return cls(settings, transforms, precision, workers, stop or Stop(), world=world)

    def alone(self) -> "RunContext":
        """The same for this process without the others."""
        return replace(self, world=SOLO, loaders={})

    @property
    def data(self) -> Source:
        return self.settings.data

    @cached_property
    def samples(self) -> Samples:
        """The data, decoded once where there is room."""
        return kept(self.data, self.settings.root / "runs" / "cache" / "data")

    def train_loader(self, seed: int, answers: LogitCache | None = None) -> TrainLoader:
        augmentation = Augmentation(self.transforms, seed, self.data.ignore_index)
        size = self.settings.trainer.batch_size
        return TrainLoader(
            self.samples, augmentation, size, seed, self.workers, self._pin, self.world, self.views, answers
        )

    @property
    def views(self) -> int | None:
        """How many views of a sample there are; without augmentation they are all the same."""
        return self.settings.augment.views if self.transforms else 1

    def loss(self, weights: Mapping[str, float]) -> DistillationLoss:
        """The loss of these weights over whole batches."""
        total = None if self.world.size == 1 else self.world.total
        return DistillationLoss(weights, self.data.classes, self.data.ignore_index, total)

    def evaluate(
        self,
        network: Segmenter,
        split: str,
        reference: Sequence[Tensor] | None = None,
        keep_labels: bool = False,
        look: CloseLook | None = None,
    ) -> Evaluation:
        if split not in self.loaders:
            self.loaders[split] = EvalLoader(
                self.samples, split, self.settings.trainer.batch_size, self.workers, self._pin, self.world
            )
        loader, void = self.loaders[split], self.data.ignore_index
        return evaluate(network, loader, self.precision, void, reference, keep_labels, self.world, look)

    @property
    def _pin(self) -> bool:
        return self.precision.device.type == "cuda"

    def recipe(self, seed: int) -> Recipe:
        optimizer, trainer = self.settings.optimizer, self.settings.trainer
        return Recipe(
            seed, optimizer.weight_decay, optimizer.betas, optimizer.clip_norm, trainer.accumulate,
            skip_nonfinite=trainer.nonfinite == "skip", validate_every=trainer.validate_every,
        )  # fmt: skip

    def look(self, baseline_HW: Tensor | None = None, reference: Sequence[Tensor] | None = None) -> CloseLook:
        """A closer look that can be taken at one split."""
        labels, void = len(self.data.class_names), self.data.ignore_index
        return CloseLook(labels, void, self.precision.device, baseline_HW, reference)

    def build(self, who: str, seed: int) -> Network:
        """The student or the teacher of the backbone, its random parts drawn from `seed`, on the device."""
        torch.manual_seed(seed)
        network = build.build(
            getattr(self.settings.backbone, who), self.data.classes, self.data.class_names, f"backbone.{who}"
        )
        network = self.precision.place(network)
        return compiled(network) if self.settings.trainer.compile else network


def _check_shares(settings: Settings, world: World) -> None:
    """Refuse a batch that cannot be shared."""
    batch, samples = settings.trainer.batch_size, settings.data.size("train")
    if min(batch, samples) < world.size:
        raise ConfigError(
            f"trainer.batch_size={batch} (of {samples} training images) is shared by {world.size} processes, and is "
            "too small to give each an image; raise it, or start fewer processes (--nproc-per-node)",
            page="gpus",
        )
