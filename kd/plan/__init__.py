"""Each epoch's temperature, unfrozen blocks and learning rates, as pure functions of the configuration. No torch.

What is exported here is what `schedule._target_` and `unfreeze._target_` may name.
"""

from kd.plan.schedules import Constant, Cosine, Exponential, Linear, Piecewise, Schedule, progress
from kd.plan.timeline import EpochPlan, LearningRates, Timeline
from kd.plan.unfreeze import All, AtEpoch, Frozen, Policy, Progressive

__all__ = [
    "All", "AtEpoch", "Constant", "Cosine", "EpochPlan", "Exponential", "Frozen", "LearningRates", "Linear",
    "Piecewise", "Policy", "Progressive", "Schedule", "Timeline", "progress",
]  # fmt: skip
