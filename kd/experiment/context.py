"""What all trainings and evaluations of a run share: settings, data, device, worker processes, training processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from kd.data import Source
from kd.data.batches.loading import Loading
from kd.data.cache import Samples, cached
from kd.data.masks.class_balance import ClassBalance, class_balance
from kd.data.measuring import statistics
from kd.data.statistics import Statistics
from kd.errors import ConfigError
from kd.networks.precision import Precision, choose_device, hold_memory, limit_threads, repeat_bit_for_bit, use_tf32
from kd.settings import Settings
from kd.system.places import CACHE
from kd.system.resources import cores, free_memory, trials_at_once
from kd.system.signals import Stop
from kd.system.world import SOLO, World

AHEAD = 3  # batches that a worker holds: two that it was asked for ahead of time, and the one it hands over
MEMORY_SHARE = 4  # the part of the free memory that these may take, as 1 / MEMORY_SHARE


@dataclass(frozen=True)
class RunContext:
    """The values that all trainings and evaluations of a run share; what is built from them: `kd.experiment.builders`.

    Attributes:
        transforms: the augmentation's transforms.
        workers: loader worker processes.
        stop: whether a signal has asked the run to end.
        world: the processes that train together.
    """

    settings: Settings
    transforms: Sequence[Any]
    precision: Precision
    workers: int
    stop: Stop = field(default_factory=Stop)
    world: World = SOLO

    @classmethod
    def of(
        cls, settings: Settings, transforms: Sequence[Any], stop: Stop | None = None, world: World = SOLO
    ) -> "RunContext":
        """The context that settings ask for.

        Raises:
            ConfigError: the device is not available, or a batch has fewer samples than there are processes.
        """
        _check_batch(settings, world)
        device = choose_device(settings.trainer.device, world)
        repeat_bit_for_bit(settings.trainer.deterministic)
        if device.type == "cuda":
            use_tf32()
        if device.type == "cpu":
            hold_memory()
            limit_threads()
        precision = Precision(device, settings.trainer.precision, settings.trainer.channels_last)
        workers = _worker_count(settings, device, world)
        return cls(settings, transforms, precision, workers, stop or Stop(), world)

    def solo(self) -> "RunContext":
        """The context of this process alone."""
        return replace(self, world=SOLO)

    def with_new_views(self) -> "RunContext":
        """The context in which every epoch sees a new view of a sample, whatever `augment.views` says."""
        augment = self.settings.augment.model_copy(update={"views": None})
        return replace(self, settings=self.settings.model_copy(update={"augment": augment}))

    @property
    def data(self) -> Source:
        """The data set, read from its files."""
        return self.settings.data

    @cached_property
    def samples(self) -> Samples:
        """The data set, decoded once and cached as `data.cache` says."""
        return cached(self.data, self.settings.root / CACHE / "data")

    @property
    def balance(self) -> ClassBalance:
        """The pixels of each class in the training masks; reads them all, once."""
        return class_balance(self.data)

    @property
    def statistics(self) -> Statistics | None:
        """The stated or measured statistics of the pictures' channels; None if the weights say how they are used."""
        return statistics(self.data)

    @property
    def views(self) -> int | None:
        """The number of different views of a sample; 1 if all are the same, None for a new one in every epoch."""
        return self.settings.augment.views if self.transforms or self.data.sizing.crops else 1

    @property
    def evaluated_together(self) -> int:
        """Samples in a batch of an evaluation: one, if pictures have their own sizes."""
        return 1 if self.data.sizing.crops else self.settings.trainer.batch_size

    @property
    def loading(self) -> Loading:
        """How batches are loaded."""
        return Loading(self.workers, self.precision.device.type == "cuda", self.world)


def _worker_count(settings: Settings, device: torch.device, world: World) -> int:
    """Loader workers per process; auto means none on a CPU, whose cores are busy training.

    On a GPU: this process's share of the cores, all but one, while the batches that they hold fit into the memory.
    """
    asked, data = settings.trainer.workers, settings.data
    if not isinstance(asked, str):
        return asked
    if device.type != "cuda":
        return 0
    sharing = world.local_size * trials_at_once()
    height, width = data.image_size
    batch = settings.trainer.batch_size / world.size * data.pixels.record_bytes * height * width
    room = free_memory() / sharing / MEMORY_SHARE / (AHEAD * batch)
    steps = max(1, data.size("train") // settings.trainer.batch_size)
    return max(1, min(cores() // sharing - 1, steps, int(room)))


def _check_batch(settings: Settings, world: World) -> None:
    """Raise a ConfigError if a batch has fewer samples than there are processes."""
    batch, samples = settings.trainer.batch_size, settings.data.size("train")
    if min(batch, samples) < world.size:
        raise ConfigError(
            f"trainer.batch_size={batch} (of {samples} training images) is shared by {world.size} processes, and is "
            "too small to give each an image; raise it, or start fewer processes (--nproc-per-node)",
            page="gpus",
        )
