"""Knowledge distillation of segmentation networks: temperature schedules, progressive unfreezing, losses.

What is public here is imported when it is first asked for, so that `import kd` costs nothing, and a schedule no torch.
docs/api.md shows these in a training loop of one's own; `train.py` and the command `kd` do the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd.distillation.losses import DistillationLoss, Terms, binary_kl, cross_entropy, logits_mse, multiclass_kl
    from kd.errors import ConfigError, DataError, ModelError, UserError
    from kd.networks.encoder_blocks import EncoderBlocks
    from kd.networks.network import Network
    from kd.networks.partition import Block, Partition, partition
    from kd.networks.saved import load
    from kd.plan.schedules import Constant, Cosine, Exponential, Linear, Piecewise, Schedule, progress
    from kd.plan.timeline import EpochPlan, LearningRates, Timeline
    from kd.plan.unfreeze import All, AtEpoch, Frozen, Policy, Progressive
    from kd.training.metrics import Confusion, predict_labels

__all__ = [
    "All", "AtEpoch", "Block", "ConfigError", "Confusion", "Constant", "Cosine", "DataError", "DistillationLoss",
    "EncoderBlocks", "EpochPlan", "Exponential", "Frozen", "LearningRates", "Linear", "ModelError", "Network",
    "Partition", "Piecewise", "Policy", "Progressive", "Schedule", "Terms", "Timeline", "UserError", "binary_kl",
    "cross_entropy", "load", "logits_mse", "multiclass_kl", "partition", "predict_labels", "progress",
]  # fmt: skip

_HOMES = {
    "networks.partition": ("Block", "Partition", "partition"),
    "errors": ("ConfigError", "DataError", "ModelError", "UserError"),
    "networks.saved": ("load",),
    "distillation.losses": ("DistillationLoss", "Terms", "binary_kl", "cross_entropy", "logits_mse", "multiclass_kl"),
    "training.metrics": ("Confusion", "predict_labels"),
    "networks.network": ("Network",),
    "networks.encoder_blocks": ("EncoderBlocks",),
    "plan": (
        "All",
        "AtEpoch",
        "Constant",
        "Cosine",
        "EpochPlan",
        "Exponential",
        "Frozen",
        "LearningRates",
        "Linear",
        "Piecewise",
        "Policy",
        "Progressive",
        "Schedule",
        "Timeline",
        "progress",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # else a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:  # such as a module of ours, which the import system then looks for
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
