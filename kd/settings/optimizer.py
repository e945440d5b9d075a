"""The group `optimizer`: AdamW or SGD, the decay of its rates, and the average of the weights."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kd.plan.timeline import LearningRates
from kd.settings.group import Group, NonNegative, Positive

ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Group):
    """AdamW or SGD, the decay of its rates from `lr` towards `min_lr`, and an average of the weights.

    Gradients are clipped to the norm `clip_norm` (null: never). `warmup` is in epochs. `ema` is the decay of the
    average of the weights over steps (0: none), which is measured beside the raw weights; `ema_saves` says which are
    saved: the better, or always the same. What has a default here is missing in older configurations.
    """

    algorithm: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    min_lr: NonNegative
    weight_decay: NonNegative
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    momentum: ShareBelowOne = 0.9
    nesterov: bool = False
    decay: Literal["cosine", "polynomial"] = "cosine"
    power: Positive = 0.9
    warmup: Annotated[int, Field(ge=0)] = 0
    ema: ShareBelowOne = 0.0
    ema_saves: Literal["better", "average", "raw"] = "better"
    encoder_lr_scale: Positive
    depth_decay: Annotated[float, Field(gt=0, le=1)]
    clip_norm: Positive | None

    @model_validator(mode="after")
    def _check_order(self) -> "Optimizer":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not be above lr={self.lr:g}, but got {self.min_lr:g}")
        return self

    @model_validator(mode="after")
    def _check_algorithm(self) -> "Optimizer":
        for name in {"adamw": ("momentum", "nesterov"), "sgd": ("betas",)}[self.algorithm]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect with algorithm={self.algorithm}: leave it out, or choose "
                    f"optimizer={'sgd' if self.algorithm == 'adamw' else 'adamw'}"
                )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs momentum above 0")
        return self

    @property
    def rates(self) -> LearningRates:
        return LearningRates(
            self.lr, self.min_lr, self.encoder_lr_scale, self.depth_decay, self.decay, self.power, self.warmup
        )

    @property
    def teachers_part(self) -> dict[str, Any]:
        """What a teacher that is trained first takes over, without what has its default."""
        always = ("min_lr", "betas", "clip_norm")
        newer = ("algorithm", "momentum", "nesterov", "decay", "power", "warmup")
        default = {name: type(self).model_fields[name].default for name in newer}
        found = self.model_dump(include={*always, *newer})
        return {name: value for name, value in found.items() if name in always or value != default[name]}
