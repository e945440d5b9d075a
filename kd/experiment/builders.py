"""What a run's settings ask for, built in its context: networks, losses, recipes, training batches, diagnostics."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kd.data.augmentation import Augmentation
from kd.data.loading import TrainLoader
from kd.data.unlabelled import BatchSize
from kd.distillation.logit_cache import LogitCache
from kd.distillation.losses import DistillationLoss
from kd.experiment.context import RunContext
from kd.networks import build
from kd.networks.network import Network
from kd.networks.precision import compiled
from kd.training.diagnostics import Diagnostics
from kd.training.step import Recipe

EVALUATED = ("val", "test")  # splits that a finished network is evaluated on, if they have samples


def build_network(context: RunContext, who: str, seed: int) -> Network:
    """The backbone's student or teacher on the device; random weights are drawn from `seed`."""
    settings, data = getattr(context.settings.backbone, who), context.data
    torch.manual_seed(seed)
    network = context.precision.place(build.build(settings, data.classes, data.class_names, f"backbone.{who}"))
    return compiled(network) if context.settings.trainer.compile else network


def build_loss(context: RunContext, weights: Mapping[str, float]) -> DistillationLoss:
    """The loss with these weights, over whole batches."""
    total = None if context.world.size == 1 else context.world.total
    return DistillationLoss(weights, context.data.classes, context.data.ignore_index, total)


def build_recipe(context: RunContext, seed: int, weight_decay: float | None = None) -> Recipe:
    """How weights are updated: the settings of optimizer and trainer, and the weight decay if it is another one."""
    optimizer, trainer = context.settings.optimizer, context.settings.trainer
    weight_decay = optimizer.weight_decay if weight_decay is None else weight_decay
    return Recipe(
        seed, weight_decay, optimizer.betas, optimizer.clip_norm, trainer.accumulate,
        skip_nonfinite=trainer.nonfinite == "skip", validate_every=trainer.validate_every,
    )  # fmt: skip


def build_train_loader(
    context: RunContext, seed: int, logit_caches: Mapping[str, LogitCache] | None = None, unlabelled: bool = False
) -> TrainLoader:
    """Augmented training batches; they bring the teacher's logits from `logit_caches`, by split.

    With `unlabelled`, the pictures without masks come beside the labelled samples, as the settings say.
    """
    settings, augmentation = context.settings, Augmentation(context.transforms, seed, context.data.ignore_index)
    size = BatchSize(settings.trainer.batch_size, settings.unlabelled_per_batch if unlabelled else 0)
    return TrainLoader(context.samples, augmentation, size, seed, context.loading, context.views, logit_caches)


def build_diagnostics(
    context: RunContext, baseline_HW: Tensor | None = None, reference: Sequence[Tensor] | None = None
) -> dict[str, Diagnostics]:
    """Empty diagnostics for each split; `reference` is the teacher's labels over validation, batch by batch."""
    data, device = context.data, context.precision.device
    references = {"val": reference}
    return {
        split: Diagnostics(len(data.class_names), data.ignore_index, device, baseline_HW, references.get(split))
        for split in EVALUATED
        if data.size(split)
    }
