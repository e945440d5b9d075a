"""A recipe: it composes to what its overrides do, and one of somebody else may set values and nothing of hydra."""

import os

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from kd.config.compose import CONF, compose, plain
from kd.errors import ConfigError
from kd.study.hydra_options import overrides_as_values
from kd.study.recipe import STUDY_KEYS, check_folder, recipe, winner_study
from kd.study.sweep import OWN, STOCK

GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra", "sweeps"}

# written

RECIPES = [
    ["seed=3"],
    ["optimizer.lr=0.00012345", "optimizer.weight_decay=1e-05", "optimizer.clip_norm=null", "seed=7"],
    ["loss=hard_only", "loss.gamma=0.5"],
    ["schedule=linear", "schedule.initial=3.5", "unfreeze.start_epoch=2", "unfreeze.rate=1"],
    ["schedule.initial=3.5", "schedule=linear"],
    ["backbone=tiny", "backbone.teacher.encoder=resnet34", "backbone.student.arch=fpn"],
    ["experiment=arm_both"],
    ["experiment=arm_hard_only", "loss.gamma=0.25", "trainer.epochs=3"],
    ["experiment=t10_curriculum", "augment=none", "schedule.temperatures=[9.0,5.0,2.0,1.0]"],
    ["experiment=arm_both", "schedule=linear"],
    ["loss=hinton", "experiment=arm_both"],
    ["experiment=[small_data,arm_both]"],
    ["data.image_size=[64,96]", "objective=[val/miou,student/latency_ms]"],
    ["objective=val/iou/foreground"],
    ["trainer.precision=bf16", "trainer.device=cpu"],
    ["tracking.run_name='a: b, #c = [d] {e}'"],
    ["tracking.run_name='it\\'s \"quoted\" über %s \\\\ / @'"],
    ["tracking.run_name='1e5'"],
    ["tracking.run_name='0x1F'"],
    ["tracking.run_name='1_000'"],
    ["tracking.run_name='true'"],
    ["tracking.run_name='null'"],
    ["tracking.run_name='2024-01-01'"],
    ["tracking.run_name=''"],
    ["tracking.run_name=' spaces '"],
    ["tracking.run_name='12:30'"],
    ["tracking.run_name='.5'"],
    ["tracking.run_name='~'"],
    ["tracking.run_name=no"],
    ["tracking.run_name=${objective}"],
    ["tracking=none"],
    ["augment.transforms=[{_target_: albumentations.HorizontalFlip, p: 0.5}]"],
    ["augment.transforms=[]"],
    ["loss={alpha:0.25,beta:0}"],
    ["loss=hinton", "loss={alpha:0.25}"],
    ["data.class_names=['a b','c: d']", "data.classes=2"],
    ["++optimizer.lr=0.5"],
    ["optimizer.betas=[0.5,0.75]"],
]


def from_recipe(text: str, folder) -> dict:
    """What `experiment=best` composes to."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "best.yaml").write_text(text, encoding="utf-8")
    with initialize_config_dir(str(CONF)):
        return plain(hydra_compose("config", [f"hydra.searchpath=[file://{folder}]", "experiment=best"]))


@pytest.mark.parametrize("overrides", RECIPES, ids=lambda lines: " ".join(lines))
def test_a_recipe_composes_to_what_its_overrides_do(overrides, tmp_path):
    text = recipe("The best.", overrides_as_values(overrides), GROUPS)
    assert from_recipe(text, tmp_path) == plain(compose(overrides))


def test_the_command_line_overrides_a_recipe(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "best.yaml").write_text(recipe("The best.", [("seed", 3), ("loss", "hinton")], GROUPS))
    with initialize_config_dir(str(CONF)):
        found = hydra_compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=best", "seed=4"])
    assert found.seed == 4
    assert plain(found) == plain(compose(["seed=4", "loss=hinton"]))


def test_a_recipe_starts_with_its_package_and_its_title():
    first, second, *rest = recipe("Trial 3 of study mine: val/miou 0.5.", [("seed", 1)], GROUPS).splitlines()
    assert first == "# @package _global_"
    assert second == "# Trial 3 of study mine: val/miou 0.5."
    assert yaml.safe_load("\n".join(rest))["seed"] == 1


def test_a_winner_is_trained_over_seeds_by_a_study_of_its_own(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "winner.yaml").write_text(winner_study("mine", str(tmp_path), seed=7))
    with initialize_config_dir(str(CONF)):
        cfg = hydra_compose(
            "config", [f"hydra.searchpath=[file://{tmp_path}]", "sweeps=winner"], return_hydra_config=True
        )
    sweeper = cfg.hydra.sweeper
    assert sweeper.study_name == "mine-winner"
    assert sweeper.sampler._target_.endswith("GridSampler")
    assert sweeper.pruner._target_.endswith("NopPruner")
    assert dict(sweeper.params) == {"experiment": "best", "seed": "range(8, 108)"}
    assert sweeper.n_trials == 4


def test_a_study_may_set_every_option_of_the_sweeper_but_where_it_is_stored():
    """Its sampler and pruner are chosen by its defaults."""
    assert {*STOCK, *OWN, "defaults"} - {"sampler", "pruner", "storage", "folder"} == STUDY_KEYS


# somebody else's


def checked(folder, path: str, text: str) -> None:
    """Check a --config-dir with one file."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text, encoding="utf-8")
    check_folder(folder, GROUPS | {"sweeps"})


@pytest.mark.parametrize("overrides", RECIPES, ids=lambda lines: " ".join(lines))
def test_a_recipe_of_ours_is_accepted(overrides, tmp_path):
    checked(tmp_path, "experiment/best.yaml", recipe("The best.", overrides_as_values(overrides), GROUPS))


def test_the_winners_study_is_accepted(tmp_path):
    checked(tmp_path, "sweeps/winner.yaml", winner_study("mine", str(tmp_path), seed=7))


@pytest.mark.parametrize("path", ["elsewhere/x.yaml", "experiment/x.txt", "experiment/x.yaml.old"])
def test_a_file_that_no_recipe_can_reach_is_not_checked(path, tmp_path):
    checked(tmp_path, path, "hydra: {run: {dir: /}}")


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("experiment/x.yaml", "# @package hydra.job\nname: x", "is placed at hydra.job"),
        ("experiment/x.yaml", "hydra: {run: {dir: /}}", "sets hydra"),
        ("experiment/x.yaml", "defaults: [{override /hydra/launcher: joblib}]", "among its defaults"),
        ("experiment/x.yaml", "defaults: [/elsewhere/x]", "among its defaults"),
        ("experiment/x.yaml", "seed: ${oc.env:HOME}", "computes"),
        ("experiment/deep/x.yaml", "a: [{b: '${${x}:HOME}'}]", "computes"),
        ("experiment.yaml", "hydra: {}", "sets hydra"),
        ("sweeps/x.yaml", "storage: sqlite:///x.db", "sets storage of a study"),
        ("sweeps/x.yaml", "params: {hydra.run.dir: choice(a,b)}", "searches hydra.run.dir"),
        ("experiment/x.yaml", "a: [", "cannot be read as YAML"),
        ("experiment/x.yaml", "a: &a {b: *a, seed: 1}", "anchors and aliases are not allowed"),
        ("experiment/x.yaml", "# @package _global_\nroot: /elsewhere", "sets root"),
        ("experiment/x.yaml", "# @package _global_\nresume: auto", "sets resume"),
        ("experiment/x.yaml", "# @package _global_\ntracking: {uri: 'http://elsewhere'}", "sets tracking.uri"),
        ("tracking/x.yaml", "uri: http://elsewhere", "sets tracking.uri"),
        ("sweeps/x.yaml", "# @package hydra.sweeper\nparams: {+root: 'choice(a,b)'}", "sets root"),
    ],
)
def test_anything_but_options_and_values_is_refused_in_one_line(path, text, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, path, text)
    assert str(tmp_path / path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_to_another_folder_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "more").symlink_to(CONF)
    with pytest.raises(ConfigError, match="is a link to another folder"):
        check_folder(tmp_path, GROUPS)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_not_a_file_of_the_folder_is_refused_unread(tmp_path, make):
    (tmp_path / "experiment").mkdir()
    make(tmp_path / "experiment" / "x.yaml")
    with pytest.raises(ConfigError, match="which a --config-dir may not contain"):
        check_folder(tmp_path, GROUPS)
