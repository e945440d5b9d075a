"""The typed settings of a teacher."""

import pytest
from pydantic import ValidationError

from kd.config.compose import compose, plain
from kd.config.read import checked
from kd.settings import ForeignTeacher, TrainedTeacher


def config(*overrides: str) -> dict:
    return plain(compose([*overrides]))


def test_the_cache_of_a_teacher_is_no_part_of_its_training():
    teacher = checked(config()).trained_teacher
    assert isinstance(teacher, TrainedTeacher)
    assert {"epochs", "lr", "seed"} <= teacher.training.keys()
    assert not {"cache", "cache_gb", "stored"} & teacher.training.keys()


def test_a_teacher_from_a_file_is_not_trained():
    settings = checked(config("teacher=file", "teacher.path=x"), look_at_data=False)
    with pytest.raises(TypeError, match="not trained"):
        _ = settings.trained_teacher


def test_two_classes_cannot_share_a_channel():
    with pytest.raises(ValidationError, match="two classes cannot share one"):
        ForeignTeacher(kind="smp", path="x", normalisation="none", class_map=(1, 1), cache="off", cache_gb=0)


def test_off_needs_no_quotes_in_yaml():
    teacher = ForeignTeacher(kind="smp", path="x", normalisation="none", class_map=None, cache=False, cache_gb=0)
    assert teacher.cache == "off"
