"""What is built follows from settings and seed alone."""

import numpy as np
import pytest
import torch
from pairs import mask, put

from kd.config.compose import compose
from kd.config.read import read
from kd.data.batches.unlabelled import BatchSize
from kd.errors import ConfigError
from kd.experiment import data_lines
from kd.experiment.builders import (
    build_diagnostics,
    build_loss,
    build_network,
    build_options,
    build_train_loader,
    check_features,
)
from kd.experiment.context import RunContext

TINY = [
    "backbone=tiny", "augment=none", "tracking=none", "trainer.device=cpu", "trainer.batch_size=4", "trainer.epochs=4",
    "data.image_size=[32,32]", "data.train=8", "data.val=3", "data.test=2", "optimizer.lr=0.01",
]  # fmt: skip


def context(*overrides) -> RunContext:
    return RunContext.of(read(compose([*TINY, "unfreeze=all", *overrides])), [])


def test_the_recipe_is_the_optimisers_and_the_trainers_settings():
    overrides = ["optimizer.weight_decay=0.2", "optimizer.betas=[0.8,0.9]", "optimizer.clip_norm=null"]
    options = build_options(context(*overrides, "trainer.accumulate=3"), 5)
    assert (options.seed, options.weight_decay, options.betas) == (5, 0.2, (0.8, 0.9))
    assert (options.clip_norm, options.accumulate) == (None, 3)


def test_networks_are_built_from_the_seed_alone():
    of = context()

    def built(seed, drawn):
        torch.manual_seed(drawn)
        return build_network(of, "student", seed).state_dict()

    one, same, other = built(1, 0), built(1, 9), built(2, 0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert build_network(of, "teacher", 0).settings.encoder == "tu-mobilenetv3_small_100"


def test_batches_follow_from_the_seed():
    of = context()
    orders = [[b.indices.tolist() for b in build_train_loader(of, seed).epoch(0)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [len(batch) for batch in orders[0]] == [4, 4]


def test_pictures_in_two_splits_are_a_warning(tmp_path):
    same = np.full((40, 40, 3), 90, np.uint8)
    for split, name, image in (("train", "a", 0), ("train", "b", 1), ("val", "c", 0), ("test", "d", 2)):
        put(tmp_path, name, same + image, mask(40, 40, (0, 1)), split)
    wanted = ["backbone=tiny", "data=folder", f"data.root={tmp_path}", "data.image_size=[32,32]"]
    (line,) = data_lines.warnings(read(compose(wanted)))
    assert line.startswith("warning  pictures that stand in two splits: 1; what is measured there is too good (")
    assert "images/train/a.png is " in line
    assert "images/val/c.png): remove one of each" in line
    (tmp_path / "images" / "val" / "c.png").unlink()
    (tmp_path / "masks" / "val" / "c.png").unlink()
    put(tmp_path, "e", same + 3, mask(40, 40, (0, 1)), "val")
    assert data_lines.warnings(read(compose(wanted))) == []


def test_only_a_student_with_a_teacher_gets_the_pictures_without_masks():
    with_pictures = ["data.unlabelled=5", "data.unlabelled_share=0.2", "trainer.batch_size=4"]
    taught, alone = context(*with_pictures), context(*with_pictures, "loss=hard_only")
    assert build_train_loader(taught, 0, unlabelled=True).batch_size() == BatchSize(4, 1)
    assert build_train_loader(taught, 0).batch_size() == BatchSize(4)
    assert data_lines.lines(taught.settings) == [
        "data     8 pictures with masks, 5 without: each batch has 4 with and 1 without, which learn from the teacher "
        "alone"
    ]
    at_labels = context(*with_pictures, "data.classes=4", "loss=dkd")
    for unused in (alone, at_labels):
        assert build_train_loader(unused, 0, unlabelled=True).batch_size() == BatchSize(4)
        (line,) = data_lines.lines(unused.settings)
        assert "5 pictures without masks are not used: no term of the loss can learn from them" in line
    assert data_lines.lines(context().settings) == []
    training = {"labelled": 8, "unlabelled": 5, "unlabelled_per_batch": 0}
    assert data_lines.counts(alone.settings) == {**training, "val": 3, "test": 2}


def test_features_are_checked_without_the_teachers_weights():
    """A teacher that was trained before needs none, and a run must not fetch them only to look at shapes."""
    of = context("loss=features", "backbone.teacher.weights=/nowhere/encoder.safetensors")
    check_features(of, build_network(of, "student", 0))
    with pytest.raises(ConfigError, match="choose from 1, 2, 3, 4, 5"):
        check_features(context("loss=features", "loss.feature_stages=[7]"), build_network(of, "student", 0))


def test_a_loss_ignores_the_void_label_of_the_data():
    masks = torch.tensor([[[0, 1], [7, 7]]], dtype=torch.uint8)
    loss = build_loss(context("data.ignore_index=7"), {"alpha": 0, "beta": 0, "gamma": 1, "delta": 0})
    one, other = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0.0], [9.0, -9.0]]]])
    assert loss(one, masks, None, 1.0).loss == loss(other, masks, None, 1.0).loss


def test_a_loss_is_compiled_if_the_trainer_says_so():
    assert build_loss(context("trainer.compile=true"), {"gamma": 1}).graph is not None
    assert build_loss(context(), {"gamma": 1}).graph is None


def test_diagnostics_are_for_each_split_and_only_validation_has_a_reference():
    reference = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
    found = build_diagnostics(context(), reference=reference)
    assert {split: each.reference for split, each in found.items()} == {"val": reference, "test": None}
