"""The group `loss`, and what every group is."""

import pytest
from pydantic import ValidationError

from kd.settings import LossSettings


def test_true_is_not_a_number():
    with pytest.raises(ValidationError, match="should not be true or false"):
        LossSettings(alpha=True, beta=0, gamma=0, delta=0)


def test_settings_are_frozen_and_have_no_other_keys():
    weights = LossSettings(alpha=1, beta=0, gamma=0, delta=0)
    with pytest.raises(ValidationError):
        weights.alpha = 2
    with pytest.raises(ValidationError):
        LossSettings(alpha=1, beta=0, gamma=0, delta=0, epsilon=1)


@pytest.mark.parametrize(("weights", "needs"), [((1, 0, 0, 0), True), ((0, 1, 0, 0), True), ((0, 0, 1, 1), False)])
def test_only_the_distillation_terms_need_a_teacher(weights, needs):
    assert LossSettings(**dict(zip(("alpha", "beta", "gamma", "delta"), weights, strict=True))).needs_teacher is needs


def test_a_loss_without_any_term_is_refused():
    with pytest.raises(ValidationError, match="all 0"):
        LossSettings(alpha=0, beta=0, gamma=0, delta=0)
