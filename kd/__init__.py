"""Knowledge distillation of segmentation networks: temperature schedules, progressive unfreezing, losses.

Public names are imported on first use: `import kd` is cheap, and a schedule needs no torch. docs/api.md shows them in a
training loop of your own; the command `kd` is built on them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd.distillation.losses import DistillationLoss, Terms
    from kd.distillation.soft_targets import (
        binary_kl,
        logits_mse,
        multiclass_kl,
        other_classes_kl,
        standardised,
        target_kl,
    )
    from kd.distillation.structure import channel_wise_kl, inter_class_relation, intra_class_relation
    from kd.distillation.task import cross_entropy
    from kd.errors import ConfigError, DataError, ModelError, UserError
    from kd.networks.encoder_blocks import EncoderBlocks
    from kd.networks.network import Network
    from kd.networks.partition import Block, Partition, partition
    from kd.networks.saved import load
    from kd.plan import (
        All,
        AtEpoch,
        Constant,
        Cosine,
        EpochPlan,
        Exponential,
        Frozen,
        LearningRates,
        Linear,
        Piecewise,
        Policy,
        Progressive,
        Schedule,
        Timeline,
        progress,
    )  # fmt: skip
    from kd.training.metrics import Confusion, predict_labels

__all__ = [
    "All", "AtEpoch", "Block", "ConfigError", "Confusion", "Constant", "Cosine", "DataError", "DistillationLoss",
    "EncoderBlocks", "EpochPlan", "Exponential", "Frozen", "LearningRates", "Linear", "ModelError", "Network",
    "Partition", "Piecewise", "Policy", "Progressive", "Schedule", "Terms", "Timeline", "UserError", "binary_kl",
    "channel_wise_kl", "cross_entropy", "inter_class_relation", "intra_class_relation", "load", "logits_mse",
    "multiclass_kl", "other_classes_kl", "partition", "predict_labels", "progress", "standardised", "target_kl",
]  # fmt: skip

_HOMES = {
    "distillation.losses": ("DistillationLoss", "Terms"),
    "distillation.soft_targets": (
        "binary_kl", "logits_mse", "multiclass_kl", "other_classes_kl", "standardised", "target_kl",
    ),
    "distillation.structure": ("channel_wise_kl", "inter_class_relation", "intra_class_relation"),
    "distillation.task": ("cross_entropy",),
    "errors": ("ConfigError", "DataError", "ModelError", "UserError"),
    "networks.encoder_blocks": ("EncoderBlocks",),
    "networks.network": ("Network",),
    "networks.partition": ("Block", "Partition", "partition"),
    "networks.saved": ("load",),
    "plan": (
        "All", "AtEpoch", "Constant", "Cosine", "EpochPlan", "Exponential", "Frozen", "LearningRates", "Linear",
        "Piecewise", "Policy", "Progressive", "Schedule", "Timeline", "progress",
    ),
    "training.metrics": ("Confusion", "predict_labels"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:  # or a submodule, which the import system then looks for
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
