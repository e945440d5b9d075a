"""The typed settings of a network."""

import pytest

from kd.settings import ForeignTeacher


@pytest.mark.parametrize(("name", "mean"), [("imagenet", (0.485, 0.456, 0.406)), ("none", (0, 0, 0))])
def test_a_normalisation_may_be_named(name, mean):
    teacher = ForeignTeacher(kind="smp", path="x", normalisation=name, class_map=None, cache="off", cache_gb=0)
    assert teacher.normalisation.mean == mean
