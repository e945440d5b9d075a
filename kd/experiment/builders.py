"""What a run's settings ask for, built in its context: networks, losses, training options and batches, diagnostics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kd.data.batches.loading import Stored, TrainLoader
from kd.data.batches.order import Order
from kd.data.batches.unlabelled import BatchSize
from kd.data.random_streams import key
from kd.data.views.augmentation import Augmentation
from kd.data.views.crops import Crop
from kd.distillation.features import Learner, feature_shapes
from kd.distillation.losses import DistillationLoss
from kd.errors import ConfigError
from kd.experiment.context import RunContext
from kd.networks import build, sizes
from kd.networks.network import Network
from kd.networks.precision import compiled
from kd.settings import TrainedTeacher
from kd.training.average import Averaging
from kd.training.diagnostics import Diagnostics
from kd.training.step import TrainingOptions

EVALUATED = ("val", "test")  # splits that a finished network is evaluated on, if they have samples


def build_network(context: RunContext, who: str, seed: int) -> Network:
    """The backbone's student or teacher on the device; random weights are drawn from `seed`.

    Raises:
        ModelError: it cannot be built.
        ConfigError: it does not take images of the data's size.
    """
    settings, data = getattr(context.settings.backbone, who), context.data
    torch.manual_seed(seed)
    built = build.build(settings, data.classes, data.class_names, f"backbone.{who}", data.pixels, context.statistics)
    sizes.check_built(built, data.image_size, f"backbone.{who}")
    network, backend = context.precision.place(built), context.settings.trainer.backend
    return compiled(network, backend) if backend else network


def build_loss(context: RunContext, weights: Mapping[str, Any]) -> DistillationLoss:
    """The loss with these weights, over whole batches, compiled if the settings say so.

    Automatic class weights are taken from the training masks.
    """
    if weights.get("class_weights") == "auto":
        weights = {**weights, "class_weights": list(context.balance.weights().values())}
    total, whole = (None, None) if context.world.size == 1 else (context.world.total, context.world.whole)
    backend = context.settings.trainer.backend
    return DistillationLoss(weights, context.data.classes, context.data.void, total, whole, backend)


def build_learner(context: RunContext, student: Network, teacher: Network) -> Learner:
    """A student with projections of its features to the teacher's, drawn from the run's seed; raises ConfigError."""
    own, others = _feature_channels(context, student, teacher)
    torch.manual_seed(key("projections", context.settings.seed) % 2**63)
    return Learner(student, context.settings.loss.stages, own, others)


def check_features(context: RunContext, student: Network) -> None:
    """Check that features can be compared before a teacher is trained for it; raises ConfigError."""
    settings = context.settings
    if settings.loss.stages and isinstance(settings.teacher, TrainedTeacher):
        spec = settings.backbone.teacher.model_copy(update={"weights": None})  # shapes need none, nor their download
        data = context.data
        teacher = build.build(spec, data.classes, data.class_names, "backbone.teacher", data.pixels)
        _feature_channels(context, student, teacher)


def _feature_channels(context: RunContext, student: Network, teacher: Network) -> tuple[list[int], list[int]]:
    """The channels of the student's and of the teacher's features at each stage.

    Raises:
        ConfigError: an encoder has no features at one of the stages, or those of the two differ in size.
    """
    stages, size = context.settings.loss.stages, context.data.image_size
    own, others = (feature_shapes(network, stages, size) for network in (student, teacher))
    for stage, one, other in zip(stages, own, others, strict=True):
        if one[1:] != other[1:]:
            raise ConfigError(
                f"loss.feature_stages={list(stages)}: at stage {stage} the student has {one[1]}x{one[2]} features and "
                f"the teacher {other[1]}x{other[2]}; choose stages of one size, or set loss.features=0",
                page="concepts",
            )
    return [shape[0] for shape in own], [shape[0] for shape in others]


def build_options(
    context: RunContext, seed: int, weight_decay: float | None = None, objective: str | None = None
) -> TrainingOptions:
    """How weights are updated: the settings of optimizer and trainer, and the weight decay if it is another one.

    They are averaged, if the settings say so, where there is an `objective` to choose between raw and averaged ones by.
    """
    optimizer, trainer = context.settings.optimizer, context.settings.trainer
    weight_decay = optimizer.weight_decay if weight_decay is None else weight_decay
    averaged = Averaging(optimizer.ema, optimizer.ema_saves, objective) if optimizer.ema and objective else None
    return TrainingOptions(
        seed, weight_decay, optimizer.betas, optimizer.clip_norm, trainer.accumulate,
        skip_nonfinite=trainer.nonfinite == "skip", validate_every=trainer.validate_every,
        algorithm=optimizer.algorithm, momentum=optimizer.momentum, nesterov=optimizer.nesterov, averaging=averaged,
    )  # fmt: skip


def build_train_loader(
    context: RunContext, seed: int, stored: Stored | None = None, unlabelled: bool = False
) -> TrainLoader:
    """Augmented training batches; they bring the teacher's answers from `stored`.

    With `unlabelled`, the pictures without masks come beside the labelled samples, as the settings say. Pictures of
    rare classes come more often if `trainer.oversample` says so.
    """
    share = context.settings.trainer.oversample
    order = Order(seed, context.balance.repeats(share) if share else None)
    settings, augmentation = context.settings, _augmentation(context, seed)
    size = BatchSize(settings.trainer.batch_size, settings.unlabelled_per_batch if unlabelled else 0)
    return TrainLoader(context.samples, augmentation, size, order, context.loading, context.views, stored)


def _augmentation(context: RunContext, seed: int) -> Augmentation:
    """The views: a crop, if pictures have their own sizes, and the transforms, outside of which is void or padding."""
    data, crop = context.data, None
    if data.padding is not None and data.sizing.crops:
        crop = Crop(data.image_size, seed, data.padding, len(data.class_names), data.crop_foreground)
    outside = data.void if data.padding is None else data.padding
    statistics = context.statistics if data.pixels.deep else None
    return Augmentation(context.transforms, seed, outside, crop, statistics)


def build_diagnostics(
    context: RunContext, baseline_HW: Tensor | None = None, reference: Sequence[Tensor] | None = None
) -> dict[str, Diagnostics]:
    """Empty diagnostics for each split; `reference` is the teacher's labels over validation, batch by batch."""
    data, device = context.data, context.precision.device
    references = {"val": reference}
    return {
        split: Diagnostics(len(data.class_names), data.void, device, baseline_HW, references.get(split))
        for split in EVALUATED
        if data.size(split)
    }
