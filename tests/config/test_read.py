"""A composed configuration becomes typed settings, or one error."""

import json

import pytest
from omegaconf import DictConfig

from kd.config.compose import compose, plain
from kd.config.read import block_count, checked, read
from kd.errors import ConfigError, UserError
from kd.plan import schedules, unfreeze
from kd.settings import NetworkSettings, TeacherFile, TrainedTeacher


def holds_omegaconf(value):
    if isinstance(value, dict):
        return any(map(holds_omegaconf, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_omegaconf, value))
    return isinstance(value, DictConfig) or type(value).__module__.startswith("omegaconf")


def test_settings_are_plain_python():
    settings = read(compose([]))
    assert settings.schedule == schedules.Cosine(4.0, 1.0)
    assert settings.unfreeze == unfreeze.Progressive(5, 3)
    assert not holds_omegaconf(settings.augment.transforms)
    assert not holds_omegaconf(settings.data.image_size)
    assert not holds_omegaconf(plain(compose(["experiment=t10_curriculum"])))


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        read(compose([])).trainer.epochs = 3


def test_an_objective_or_a_list_of_them_is_accepted():
    assert read(compose(["objective=val/dice"])).objective == ("val/dice",)
    several = read(compose(["objective=[val/miou,student/latency_ms]"])).objective
    assert several == ("val/miou", "student/latency_ms")


def test_the_iou_of_a_class_is_an_objective():
    assert read(compose(["objective=val/iou/foreground"])).objective == ("val/iou/foreground",)
    with pytest.raises(ConfigError, match="val/iou/nucleus"):
        read(compose(["objective=val/iou/nucleus"]))


def test_agreement_needs_a_teacher():
    with pytest.raises(ConfigError, match="needs a teacher"):
        read(compose(["objective=val/teacher_agreement", "loss=hard_only"]))


def test_a_teacher_is_trained_or_loaded_from_a_file():
    assert isinstance(read(compose([])).teacher, TrainedTeacher)
    given = read(compose(["teacher=file", "teacher.path=x"]), look_at_data=False).teacher
    assert given == TeacherFile(path="x", cache="auto", cache_gb=20)


def test_a_wrong_teacher_key_is_named_without_the_kind_of_teacher():
    with pytest.raises(ConfigError, match=r"^teacher\.lr=-1: "):
        read(compose(["teacher.lr=-1"]))


def describe(folder, names):
    (folder / "student.safetensors").touch()
    spec = {"arch": "unet", "encoder": "resnet18", "classes": len(names), "class_names": names}
    (folder / "student.json").write_text(json.dumps({**spec, "mean": [0, 0, 0], "std": [1, 1, 1]}))
    return ["teacher=file", f"teacher.path={folder}"]


def test_a_teacher_with_other_classes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has 3 classes \(a, b, c\) and 3 logits, the data has 2 classes"):
        read(compose([*describe(tmp_path, ["a", "b", "c"])]))


def test_a_teacher_that_no_loss_uses_is_not_checked():
    assert read(compose(["teacher=file", "teacher.path=/nowhere", "loss=hard_only"]))


def test_missing_data_is_reported():
    with pytest.raises(UserError, match="/nowhere"):
        read(compose(["data=folder", "data.root=/nowhere"]))


def test_the_blocks_of_an_encoder_outside_the_table_are_counted():
    assert block_count(NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_075")) in range(4, 8)
    assert block_count(NetworkSettings(arch="pspnet", encoder="resnet18")) < 5


def test_an_unknown_encoder_has_no_blocks():
    with pytest.raises(UserError, match="efficientnet-b0"):
        block_count(NetworkSettings(arch="unet", encoder="efficientnet-b00"))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("~schedule", "~schedule: a group cannot be removed, only replaced: schedule=...; choose from constant"),
        ("~unfreeze=all", "a group cannot be removed"),
        ("~seed", "~seed: this key cannot be removed; set it: seed=..."),
        ("~trainer.epochs", "cannot be removed; set it: trainer.epochs=..."),
        ("+schedule._convert_=all", "schedule._convert_ is not an option"),
        ("schedule._target_=kd.plan.All", "schedule._target_=kd.plan.All is not what"),
        ("objective=[val/miou,val/miou]", "should name each metric once"), ("root=", "root=''"),
    ],
)  # fmt: skip
def test_an_invalid_group_is_reported(typed, says):
    with pytest.raises(ConfigError) as caught:
        read(compose([typed]))
    assert says in str(caught.value)


@pytest.mark.parametrize("group", ["data", "schedule", "unfreeze"])
def test_no_interpolation_of_a_saved_configuration_is_resolved(group, monkeypatch):
    """A run folder may be another person's, and the environment holds secrets."""
    monkeypatch.setenv("SECRET", "hunter2")
    config = plain(compose(["data=folder", "data.root=x"]))
    key = {"data": "root", "schedule": "initial", "unfreeze": "rate"}[group]
    config[group] = config[group] | {key: "${oc.env:SECRET}"}
    with pytest.raises(UserError) as caught:
        checked(config)
    assert "hunter2" not in str(caught.value)
