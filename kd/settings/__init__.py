"""The settings of a run as typed, validated values, and which of their keys change no result.

No torch here: an invalid value is reported before anything slow is imported.
"""

from kd.settings.backbone import IMAGENET_MEAN, IMAGENET_STD, NORMALISATIONS, NetworkSettings, Normalisation
from kd.settings.group import Group
from kd.settings.keys import RESULT_NEUTRAL, changes_no_result, flat, is_under, result_differences, same_result
from kd.settings.loss import TASK_KEYS, TASK_TERMS, TEACHING_KEYS, TEACHING_TERMS, LossSettings
from kd.settings.optimizer import Optimizer
from kd.settings.run import OBJECTIVES, Settings, Tracking, more_is_better
from kd.settings.teacher import Cached, ForeignTeacher, TeacherFile, TrainedTeacher

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "NORMALISATIONS", "OBJECTIVES", "RESULT_NEUTRAL", "TASK_KEYS", "TASK_TERMS",
    "TEACHING_KEYS", "TEACHING_TERMS", "Cached", "ForeignTeacher", "Group", "LossSettings", "NetworkSettings",
    "Normalisation", "Optimizer", "Settings", "TeacherFile", "Tracking", "TrainedTeacher", "changes_no_result",
    "flat", "is_under", "more_is_better", "result_differences", "same_result",
]  # fmt: skip
