"""The typed settings of a run."""

import pytest

from kd.settings import more_is_better


@pytest.mark.parametrize(("objective", "more"), [("val/miou", True), ("val/loss", False), ("val/iou/cat", True),
                                                 ("student/latency_ms", False)])  # fmt: skip
def test_quality_is_maximized_and_cost_minimized(objective, more):
    assert more_is_better(objective) is more
