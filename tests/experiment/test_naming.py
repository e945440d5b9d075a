"""A run's name tells in a few words what it is made of, and tells runs apart."""

import pytest

from kd.config.compose import compose, plain
from kd.config.read import checked
from kd.experiment.naming import run_name


def name(*typed: str, **choices: str) -> str:
    settings = checked(plain(compose([*typed])), look_at_data=False)
    usual = {"backbone": "b0_from_b3", "loss": "cwd", "schedule": "cosine", "data": "shapes"}
    return run_name(settings, {**usual, **choices}, list(typed))


@pytest.mark.parametrize(
    ("typed", "choices", "expected"),
    [
        ([], {}, "b0 from b3, cwd, cosine 4-1, shapes"),
        (["schedule=constant", "schedule.initial=2"], {"schedule": "constant"},
         "b0 from b3, cwd, constant 2, shapes"),
        (["loss=hard_only", "seed=3"], {"loss": "hard_only"}, "b0 alone, hard_only, shapes, seed 3"),
        (["backbone=tiny"], {"backbone": "tiny"}, "tiny, cwd, cosine 4-1, shapes"),
        (["unfreeze=all", "optimizer.lr=0.01", "tracking.experiment=x"], {},
         "b0 from b3, cwd, cosine 4-1, shapes, unfreeze=all, lr=0.01"),
        (["trainer.epochs=9", "trainer.batch_size=4", "unfreeze.rate=1", "data.val=4"],
         {}, "b0 from b3, cwd, cosine 4-1, shapes, epochs=9, batch_size=4, rate=1, val=4"),
        (["trainer.epochs=9", "teacher.epochs=1", "unfreeze.rate=1"], {},
         "b0 from b3, cwd, cosine 4-1, shapes, trainer.epochs=9, teacher.epochs=1, rate=1"),
        (["teacher.epochs=1"], {}, "b0 from b3, cwd, cosine 4-1, shapes, teacher.epochs=1"),
        (["backbone.teacher.arch=fpn", "backbone.student.arch=unet"], {},
         "b0 from b3, cwd, cosine 4-1, shapes, teacher.arch=fpn, student.arch=unet"),
    ],
)  # fmt: skip
def test_a_name_says_what_a_run_is_made_of(typed, choices, expected):
    assert name(*typed, **choices) == expected


def test_a_name_has_as_many_options_as_fit_and_none_cut_off():
    typed = [f"trainer.epochs={epochs}" for epochs in range(10, 30)]
    *begun, last = name("seed=7", *typed).split(", ")
    assert (begun[:4], last) == (["b0 from b3", "cwd", "cosine 4-1", "shapes"], "seed 7")
    added = begun[4:]
    assert added == [f"epochs={epochs}" for epochs in range(10, 10 + len(added))]
    assert 110 < len(name("seed=7", *typed)) <= 120


def test_a_folder_of_ones_own_is_named_by_its_last_part(tmp_path):
    settings = checked(plain(compose(["data=folder", f"data.root={tmp_path}/my cells"])), look_at_data=False)
    assert run_name(settings, {"backbone": "tiny", "data": "folder"}, []).split(", ")[-1] == "my cells"
