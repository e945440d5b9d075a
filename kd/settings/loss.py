"""The group `loss`: the weight of each term, which terms need a teacher, and which need three classes."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kd.settings.group import Group, NonNegative, Positive

#: The weight of each term of the loss that compares student and teacher, by the term's name in metrics. Without any of
#: them, no teacher is built.
TEACHING_TERMS = {
    "kl": "alpha", "mse": "beta", "cwd": "cwd", "dist_inter": "dist_inter", "dist_intra": "dist_intra",
    "tckd": "tckd", "nckd": "nckd", "features": "features",
}  # fmt: skip
#: The same for the terms that compare the student with the labels.
TASK_TERMS = {
    "ce": "gamma", "dice": "delta", "focal": "focal", "tversky": "tversky", "jaccard": "jaccard", "lovasz": "lovasz",
}  # fmt: skip
#: All keys of group `loss` that concern what is learnt from the labels: weights, and what the terms are computed with.
TASK_KEYS = (
    *TASK_TERMS.values(), "focal_gamma", "focal_alpha", "tversky_alpha", "tversky_beta", "tversky_gamma",
    "class_weights",
)  # fmt: skip
#: The task terms that count pixels, each of which `class_weights` weighs by its label, by their weights.
PIXEL_TERMS = ("gamma", "focal")
#: Terms that compare student and teacher at the label of each pixel: a picture without a mask has none.
AT_LABELS = ("tckd", "nckd")
#: Keys of group `loss` that need three classes or more, and why. One logit z is two classes, with logits 0 and z.
THREE_CLASSES = {
    "standardise": "two standardised logits are 1 and -1, however certain the teacher is",
    "dist_inter": "the correlation of two numbers with two others is 1 or -1, without a gradient",
    "tckd": "with two classes it is the KL itself, whose weight is alpha",
    "nckd": "the only class that is not the label's always has the probability 1",
}


def _auto_or_list(value: Any) -> Any:
    """Refuse anything but null, auto and a list in words of its own; pydantic would complain of each alternative."""
    numbers = isinstance(value, list | tuple) and all(isinstance(each, int | float) and each >= 0 for each in value)
    if value is None or value == "auto" or numbers:
        return value
    raise ValueError("should be null, auto, or a list with a weight for each class, 0 or more, such as [1,5]")


ClassWeights = Annotated[
    Literal["auto"] | tuple[NonNegative, ...] | None,
    BeforeValidator(_auto_or_list),
]


class LossSettings(Group):
    """Weights of the loss's terms, and how those that need a teacher are computed.

    total = alpha T^2 KL + beta MSE(logits) + cwd CWD + dist_inter and dist_intra DIST + tckd TCKD + nckd NCKD
    + features MSE(features) or CWD(features) + gamma CE + delta Dice + focal Focal + tversky Tversky + jaccard Jaccard
    + lovasz Lovasz. A term of weight 0 is not computed. T is the schedule's; the others' temperatures are constants, or
    the schedule's if they are null.
    `standardise` is of the KL's logits. `on_void`: the teacher's terms count void pixels, too. `class_weights`: one per
    class (for binary data: background, foreground), or auto, from the training masks.
    """

    alpha: NonNegative = 0.0
    beta: NonNegative = 0.0
    cwd: NonNegative = 0.0
    cwd_temperature: Positive | None = 4.0
    dist_inter: NonNegative = 0.0
    dist_intra: NonNegative = 0.0
    dist_temperature: Positive | None = 1.0
    tckd: NonNegative = 0.0
    nckd: NonNegative = 0.0
    dkd_temperature: Positive | None = 4.0
    features: NonNegative = 0.0
    feature_stages: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (5,)
    feature_term: Literal["mse", "cwd"] = "mse"
    feature_temperature: Positive = 4.0
    standardise: bool = False
    on_void: bool = False
    gamma: NonNegative = 0.0
    delta: NonNegative = 0.0
    focal: NonNegative = 0.0
    focal_gamma: NonNegative = 2.0
    focal_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    tversky: NonNegative = 0.0
    tversky_alpha: NonNegative = 0.5
    tversky_beta: NonNegative = 0.5
    tversky_gamma: Positive = 1.0
    jaccard: NonNegative = 0.0
    lovasz: NonNegative = 0.0
    class_weights: ClassWeights = None

    @field_validator("feature_stages")
    @classmethod
    def _check_stages(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(stages)) < len(stages):
            raise ValueError(f"{list(stages)} names a stage twice; name each once")
        return stages

    @model_validator(mode="after")
    def _check_any_term(self) -> "LossSettings":
        names = [*TEACHING_TERMS.values(), *TASK_TERMS.values()]
        if not any(getattr(self, name) for name in names):
            raise ValueError(f"{', '.join(names[:-1])} and {names[-1]} are all 0; set at least one of them above 0")
        return self

    @model_validator(mode="after")
    def _check_class_weights(self) -> "LossSettings":
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise ValueError("class_weights are all 0, so no pixel would count; raise one, or set class_weights=null")
        if self.class_weights is not None and not any(getattr(self, name) for name in PIXEL_TERMS):
            raise ValueError(
                "class_weights weigh the pixels of cross-entropy and focal, and the weights of both (gamma and focal) "
                "are 0; raise one, or set class_weights=null"
            )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term in the sum, by the term's name in metrics."""
        return {term: float(getattr(self, key)) for term, key in {**TEACHING_TERMS, **TASK_TERMS}.items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term uses the teacher; if none does, no teacher is built."""
        return any(getattr(self, name) for name in TEACHING_TERMS.values())

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages of the encoders whose features are compared; none if that term has no weight."""
        return self.feature_stages if self.features else ()

    @property
    def teaches_without_masks(self) -> bool:
        """Whether any term uses the teacher on pictures without masks."""
        return any(getattr(self, weight) for term, weight in TEACHING_TERMS.items() if term not in AT_LABELS)

    def refusal(self, classes: int) -> str | None:
        """Why the loss is not defined for so many classes (1: binary), in one line; None if it is."""
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != max(classes, 2):
            each = "two (background, foreground)" if classes == 1 else f"{classes}, one per class"
            return f"loss.class_weights has {len(self.class_weights)} weights and should have {each}"
        key = next((key for key in THREE_CLASSES if getattr(self, key) and classes < 3), None)
        if key is None:
            return None
        value, off = getattr(self, key), "false" if key == "standardise" else "0"
        return f"loss.{key}={value} needs three classes or more: {THREE_CLASSES[key]}; set loss.{key}={off}"


#: The keys that only concern what is learnt from a teacher: one with a teacher and one without may differ in them.
TEACHING_KEYS = (
    "schedule", "teacher", "backbone.teacher",
    *(f"loss.{name}" for name in LossSettings.model_fields if name not in TASK_KEYS),
)  # fmt: skip
