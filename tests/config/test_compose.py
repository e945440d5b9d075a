"""The project's root, and the classes that a configuration may instantiate."""

import subprocess
import sys

import composed_once
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kd.config import compose as module
from kd.config.compose import CONF, PROJECT, TARGETS, WHITELIST, class_of, compose, known_keys, options, plain
from kd.errors import ConfigError


def test_a_configuration_may_instantiate_only_schedules_policies_and_data_sets():
    assert {name for classes in TARGETS.values() for name in classes} == {
        *(f"kd.plan.{name}" for name in ("Constant", "Linear", "Cosine", "Exponential", "Piecewise")),
        *(f"kd.plan.{name}" for name in ("Progressive", "AtEpoch", "All", "Frozen")),
        *(f"kd.data.{name}" for name in ("Shapes", "Folder", "OxfordPet", "Coco", "HuggingFace")),
    }


@pytest.mark.parametrize("target", WHITELIST)
def test_every_target_is_the_path_of_a_class(target):
    assert isinstance(class_of(target), type)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "backbone=tiny", "optimizer.lr=1e-4", "unfreeze.rate=1"],
        ["data.root=a b", "data=folder", "data.image_size=[32,64]", "data.mask_values=[0,255]", "objective=val/dice"],
        ["trainer.epochs=7", "experiment=t10_curriculum", "schedule=linear", "schedule.final=2", "teacher.lr=null"],
        ["loss=cwd", "loss.alpha=0.5", "+tracking.tags.who=me", "++trainer.epochs=5"],
    ],
)
def test_the_tests_memory_of_choices_changes_no_configuration(overrides, root, monkeypatch):
    compose([*overrides, "seed=5"])
    remembered = compose(overrides)
    monkeypatch.setattr(composed_once, "constant_places", lambda repo: None)
    monkeypatch.setattr(composed_once, "_parsed", {})
    anew = compose(overrides)
    assert anew == remembered
    assert plain(anew) == plain(remembered)
    assert OmegaConf.is_struct(remembered)


def test_kd_root_sets_the_root(root):
    assert compose([]).root == str(root)


def test_the_root_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("KD_ROOT")
    monkeypatch.chdir(tmp_path)
    assert compose([]).root == str(PROJECT)


def test_the_root_is_the_working_directory_where_the_package_is_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("KD_ROOT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "INSTALLED", True)
    assert compose([]).root == str(tmp_path)


def test_an_override_of_root_wins(tmp_path):
    assert compose([f"root={tmp_path}/other"]).root == f"{tmp_path}/other"


def test_the_keys_that_messages_suggest_exist():
    assert {"schedule", "schedule.initial", "unfreeze.rate", "loss.alpha", "experiment"} <= set(known_keys())


def test_options_are_those_of_the_folder():
    assert options("tracking") == "choose from mlflow, none"


def test_importing_the_light_modules_imports_no_torch():
    light = "kd.config.compose, kd.config.read, kd.config.hydra_errors, kd.config.resume, kd.experiment.train, kd.cli"
    code = f"import sys, {light}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_composing_leaves_a_running_hydra_as_it_is():
    with initialize_config_dir(str(CONF)):
        running = GlobalHydra.instance().hydra
        assert compose(["seed=3"]).seed == 3
        assert GlobalHydra.instance().hydra is running
        assert hydra_compose("config", ["seed=4"]).seed == 4
    assert compose(["seed=5"]).seed == 5


def test_an_interpolation_of_nothing_is_one_line_unless_it_is_hydras():
    with pytest.raises(ConfigError, match=r"^optimizer\.lr: Interpolation key 'nope' not found$"):
        plain(compose(["optimizer.lr=${nope}"]))
    with pytest.raises(ConfigError, match=r"^seed: Interpolation key 'nope' not found$"):
        plain(compose(["seed=${nope}"]))
    assert plain(compose(["hydra.run.dir=${nope}"])) == plain(compose([]))
