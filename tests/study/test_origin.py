"""A study of one's own recipes, in a folder given by --config-dir: what follows it needs that folder no more."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import optuna
import program
import pytest
import yaml

from kd.cli import main as kd
from kd.config.compose import compose, plain
from kd.report.run_files import read
from kd.study.origin import ATTRIBUTE, Origin

SMALL = {
    "trainer": {"batch_size": 8, "epochs": 3, "device": "cpu"}, "pictures": False,
    "unfreeze": {"start_epoch": 1}, "optimizer": {"encoder_lr_scale": 0.3, "weight_decay": 0.01},
    "data": {"image_size": [32, 32], "train": 16, "val": 8, "test": 8},
}  # fmt: skip
FILES = {
    "experiment/base.yaml": f"# @package _global_\ndefaults: [override /backbone: tiny]\n{yaml.safe_dump(SMALL)}",
    "experiment/mine.yaml": "# @package _global_\ndefaults: [base, override /schedule: own, _self_]\n"
    "loss: {gamma: 0.5}\n",
    "experiment/unused.yaml": "# @package _global_\nseed: 4\n",
    "experiment/arm_both.yaml": "# @package _global_\nseed: 5\n",  # hydra prefers the project's own
    "schedule/own.yaml": "_target_: kd.plan.Linear\ninitial: ${unfreeze.rate}\nfinal: 1.0\n",
    "sweeps/own.yaml": "# @package hydra.sweeper\n# Is it mine?\ndefaults: [/hydra/sweeper/sampler@sampler: grid, "
    "/hydra/sweeper/pruner@pruner: none]\nstudy_name: no_teacher\n"
    "params: {unfreeze.rate: 'choice(1,2)', loss: 'choice(hard_only)'}\n",
}
USED = {"experiment/base", "experiment/mine", "schedule/own"}


def put(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of own recipes, whose folder of recipes is gone."""
    root = tmp_path_factory.mktemp("studied")
    own = put(root / "own", FILES)
    typed = ["experiment=mine", "sweeps=own", "optimizer.lr=0.02", "tracking=none"]
    done = program.train(root, "-m", "--config-dir", str(own), *typed)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(own)
    study = optuna.load_study(study_name="no_teacher", storage=f"sqlite:///{root}/runs/studies/studies.db")
    return SimpleNamespace(root=root, own=own, study=study, folder=root / "runs" / "studies" / "no_teacher")


def without_place(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in ("root", "tracking")}


def test_the_best_recipe_of_own_recipes_composes_to_what_its_trial_trained_with(studied):
    trained = yaml.safe_load((studied.folder / str(studied.study.best_trial.number) / "config.yaml").read_text())
    best = plain(compose(["experiment=best"], studied.folder))
    assert best["schedule"]["initial"] == studied.study.best_trial.params["unfreeze.rate"]
    assert without_place(best) == without_place(trained)


def test_the_option_files_that_the_trials_used_are_beside_the_recipe_and_no_others(studied):
    found = {str(path.relative_to(studied.folder).with_suffix("")) for path in studied.folder.glob("[!0-9]*/*.yaml")}
    assert found == {*USED, "experiment/best", "sweeps/winner"}
    assert all((studied.folder / f"{name}.yaml").read_text() == FILES[f"{name}.yaml"] for name in USED)


def test_the_winners_study_of_own_recipes_trains(studied):
    typed = ["sweeps=winner", "hydra.sweeper.n_trials=1", "tracking=none"]
    done = program.train(studied.root, "-m", "--config-dir", str(studied.folder), *typed)
    assert done.returncode == 0, done.stderr
    assert not (studied.root / "runs" / "studies" / "no_teacher-winner" / "experiment").exists()


def test_kd_study_writes_the_option_files_again(studied, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KD_STORAGE", f"sqlite:///{studied.root}/runs/studies/studies.db")
    kd(["study", "no_teacher"])
    capsys.readouterr()
    written = tmp_path / "runs" / "studies" / "no_teacher"
    assert all((written / f"{name}.yaml").read_text() == FILES[f"{name}.yaml"] for name in USED)


def test_a_study_keeps_the_question_of_its_own_file_whatever_it_is_named(studied):
    assert Origin.read(studied.study).question == "Is it mine?"


def test_a_trial_says_which_folder_of_recipes_it_needs(studied):
    folder = studied.folder / "0"
    assert json.loads((folder / "run.json").read_text())["config_dir"] == str(studied.own)
    assert read(folder).arguments[:3] == ["--config-dir", str(studied.own), "experiment=mine"]


@pytest.mark.parametrize("name", ["../x", "experiment/../../x", "/etc/x", "hydra/x", "sweeps/x", "x", "0/x", "loss/.x"])
def test_a_database_cannot_write_elsewhere_than_into_the_groups(name):
    study = optuna.create_study()
    study.set_user_attr(ATTRIBUTE, {"question": None, "options": {name: "a: 1", "loss/own": "a: 1", "loss/two": 3}})
    assert Origin.read(study) == Origin("", {"loss/own": "a: 1"})


@pytest.mark.parametrize("stored", [None, 3, {"options": [1]}])
def test_a_study_without_an_origin_has_no_option_files(stored):
    study = optuna.create_study()
    study.set_user_attr(ATTRIBUTE, stored)
    assert Origin.read(study).options == {}


def test_a_recipe_does_not_take_the_name_of_one_that_it_is_made_of(tmp_path):
    own = put(tmp_path / "own", FILES | {"experiment/best.yaml": FILES["experiment/base.yaml"]})
    (own / "experiment" / "mine.yaml").write_text(FILES["experiment/mine.yaml"].replace("base", "best"))
    typed = ["experiment=mine", "sweeps=own", "unfreeze.rate=1", "tracking=none"]
    done = program.train(tmp_path, "-m", "--config-dir", str(own), *typed)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs" / "studies" / "no_teacher" / "experiment").exists()
