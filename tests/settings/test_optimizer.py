"""The optimiser's settings are checked against each other."""

import pytest
from pydantic import ValidationError

from kd.settings import Optimizer


def test_the_learning_rate_cannot_rise():
    with pytest.raises(ValidationError, match=r"min_lr must not be above lr=0\.001"):
        Optimizer(lr=1e-3, min_lr=1e-2, weight_decay=0, betas=(0.9, 0.99), encoder_lr_scale=1, depth_decay=1,
                  clip_norm=None)  # fmt: skip
