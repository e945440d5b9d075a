"""How good a network is beside what can be had for nothing: the metrics that show it, and the way to its teacher.

For binary data the foreground's IoU and Dice come first. The background is easy and hides a useless network: on 2 % of
foreground, one that predicts background everywhere has a mean IoU of 0.49 and a mean Dice of 0.50.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd.settings import more_is_better

#: The least share of the way from a trivial prediction to a perfect one that counts as having learnt something: other
#: seeds move a network by as much.
LEAST = 0.05
SPLITS = {"val": "validation", "test": "test"}

Metrics = Mapping[str, Any]  # figures of a network by name, <split>/<metric> among them; None if undefined


def quality_metrics(class_names: Sequence[str]) -> tuple[str, ...]:
    """The metrics that show a network's quality, the decisive one first.

    >>> quality_metrics(["background", "nucleus"])
    ('iou/nucleus', 'dice/nucleus', 'miou')
    >>> quality_metrics(["sky", "road", "car"])
    ('miou', 'dice')
    """
    if len(class_names) == 2:
        return f"iou/{class_names[1]}", f"dice/{class_names[1]}", "miou"
    return "miou", "dice"


def metric_title(metric: str) -> str:
    """A metric as a table shows it.

    >>> metric_title("iou/nucleus"), metric_title("miou")
    ('IoU of nucleus', 'mIoU')
    """
    kind, _, name = metric.partition("/")
    spelled = {"miou": "mIoU", "dice": "Dice", "iou": "IoU"}.get(kind, kind)
    return f"{spelled} of {name}" if name else spelled


def share_of_way(student: float | None, trivial: float | None, teacher: float | None) -> float | None:
    """How far a student has come from a trivial prediction to its teacher: 0 at the first, 1 at the second.

    None if a figure is missing, or if the teacher is hardly better than trivial.

    >>> share_of_way(0.5, 0.25, 0.75)
    0.5
    """
    if student is None or trivial is None or teacher is None or is_near_trivial(teacher, trivial):
        return None
    return (student - trivial) / (teacher - trivial)


def is_near_trivial(value: float | None, trivial: float | None) -> bool:
    """Whether a network has learnt next to nothing: less than `LEAST` of the way from trivial to a perfect 1.

    >>> is_near_trivial(0.494, 0.491), is_near_trivial(0.62, 0.491)
    (True, False)
    """
    return value is not None and trivial is not None and value - trivial < LEAST * (1 - trivial)


@dataclass(frozen=True)
class Compared:
    """A student beside its teacher and a trivial prediction, each with its figures; empty for what there is not.

    `reference` is what the trivial prediction is called.
    """

    class_names: Sequence[str]
    student: Metrics
    teacher: Metrics
    trivial: Metrics
    reference: str = "a trivial prediction"

    @property
    def decisive(self) -> str:
        """The figure that decides: the first of `quality_metrics`, on test if there is a test split."""
        first = quality_metrics(self.class_names)[0]
        return f"test/{first}" if self.student.get(f"test/{first}") is not None else f"val/{first}"

    @property
    def share_of_way(self) -> float | None:
        """The share of the way from trivial to teacher, by the decisive figure."""
        key = self.decisive
        return share_of_way(self.student.get(key), self.trivial.get(key), self.teacher.get(key))

    def against_teacher(self) -> str:
        """The student's place between trivial and teacher, as a sentence; empty without a teacher."""
        split, _, metric = self.decisive.partition("/")
        teacher, trivial = self.teacher.get(self.decisive), self.trivial.get(self.decisive)
        share = self.share_of_way
        if share is not None:
            shown = share if share >= 1 else min(share, 0.99)  # what is less than all is not rounded to it
            far = f"{shown:.0%}" if share > 0 else "none"
            way = f"The student came {far} of the way from {self.reference} to its teacher"
        elif teacher is not None and trivial is not None:
            way = f"The teacher {self._place(teacher, trivial)} ({teacher:.4f} against {trivial:.4f})"
        else:
            return ""
        return f"{way}, by {metric_title(metric)} on {SPLITS[split]}."

    def warning(self) -> str:
        """Why the student is of no use, and what to try; empty if it is clearly better than a trivial prediction.

        Clearly by the decisive figure; its mean IoU must not be lower, either.
        """
        split, _, metric = self.decisive.partition("/")
        mean, trivial_mean = (each.get(f"{split}/miou") for each in (self.student, self.trivial))
        value, trivial = self.student.get(self.decisive), self.trivial.get(self.decisive)
        near = is_near_trivial(value, trivial)
        if not near:
            metric, value, trivial = "miou", mean, trivial_mean
        if value is None or trivial is None or not (near or value < trivial):
            return ""
        remedy = f", or choose the best epoch by objective=val/{metric}" if metric != "miou" else ""
        return (
            f"The student {self._place(value, trivial)}: {metric_title(metric)} {value:.4f} against {trivial:.4f} on "
            f"{SPLITS[split]}. Train longer{remedy}."
        )

    def _place(self, value: float, trivial: float) -> str:
        """What to say of a network that is near the trivial prediction, or below it."""
        return f"{'is hardly better than' if value > trivial else 'does not beat'} {self.reference}"


def improves(record: Mapping[str, Any], best: Mapping[str, Any], objective: str) -> bool:
    """Whether an epoch is better than the best so far; any figure is better than None or NaN."""
    new, old = _not_nan(record.get(objective)), _not_nan(best.get(objective))
    if new is None or old is None:
        return old is None and new is not None
    return new > old if more_is_better(objective) else new < old


def _not_nan(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
