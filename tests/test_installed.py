"""The wheel, installed away from the clone, holds every file it needs; its four commands work in an empty folder.

The environment has the libraries of this one, and no path to the clone.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from kd.config.compose import CONF, PROJECT
from kd.system.installation import version

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=16", "data.val=8", "data.test=8", "trainer.epochs=2",
    "trainer.batch_size=8", "trainer.device=cpu", "unfreeze.start_epoch=1", "pictures=false", "tracking=none",
    "loss=hard_only",
]  # fmt: skip
OPTIONS = {
    path.relative_to(CONF).as_posix(): path.read_bytes()
    for path in [*CONF.rglob("*.yaml"), *(CONF / "sweeps").glob("*.yaml")]  # rglob follows no links
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, as `pip wheel .` builds it with the tools that are here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder, PROJECT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of an environment with the wheel; sites in a .pth file do not have theirs read (the editable's)."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    (site,) = folder.rglob("site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python(folder), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", wheel], check=True)
    return folder


def python(environment):
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture
def call(environment, tmp_path):
    """Run a command of the environment in the empty folder `tmp_path`."""

    def run(*command, fails=False, **variables):
        folder = python(environment).parent
        outside = {"PYTHONPATH", "KD_ROOT", "VIRTUAL_ENV"}
        env = {name: value for name, value in os.environ.items() if name not in outside}
        env |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **variables}
        done = subprocess.run(
            [folder / command[0], *command[1:]], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=600
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


def only_run(root):
    (config,) = root.glob("runs/*/*/config.yaml")
    return config.parent


def test_the_wheel_holds_every_option_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    prefix = "kd/conf/"
    assert {name.removeprefix(prefix): found[name] for name in found if name.endswith(".yaml")} == OPTIONS
    assert {"sweeps/no_teacher.yaml", "hydra/sweeper/study.yaml", "schedule/cosine.yaml"} <= OPTIONS.keys()


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name and not name.startswith("kd/conf/")}
    sources = {
        path.relative_to(PROJECT).as_posix()
        for folder in ("kd", "hydra_plugins")
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert found == sources
    assert {"kd/py.typed", "kd/report/page.css", "kd/report/page.html.j2"} <= found
    assert "hydra_plugins/__init__.py" not in found  # the plugins of others would vanish


def test_it_is_the_code_of_the_wheel_that_runs(call, environment):
    code = (
        "import json, sys, kd, hydra_plugins.study_sweeper as sweeper; from kd.config import compose;"
        "print(json.dumps([kd.__file__, sweeper.__file__, str(compose.CONF), *sys.path[1:]]))"
    )
    package, sweeper, conf, *path = json.loads(call("python", "-c", code))
    assert all(Path(file).is_relative_to(environment) for file in (package, sweeper, conf))
    assert not [entry for entry in path if Path(entry) in (PROJECT, PROJECT / "tests")]


@pytest.mark.parametrize("command", [["kd"], ["kd", "train"]])
def test_the_version_is_the_projects(call, command):
    assert call(*command, "--version") == f"kd-sweeper {version()}\n"


def test_preview_and_check_work(call):
    assert call("kd", "preview", "schedule=cosine", "unfreeze.rate=3").startswith("epochs ")
    assert "no problems" in call("kd", "check", *SMALL[:5])


def test_train_leaves_a_run_in_the_working_directory(call, tmp_path):
    call("kd", "train", "schedule=cosine", "unfreeze.rate=3", *SMALL)
    folder = only_run(tmp_path)
    assert (folder / "student.safetensors").is_file()
    assert (folder / "train.log").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["root"] == str(tmp_path)
    assert json.loads((folder / "run.json").read_text())["environment"]["packages"]["kd-sweeper"] == version()


@pytest.mark.slow
def test_a_study_runs_with_the_sweeper_of_the_wheel(call, tmp_path):
    call("kd", "train", "-m", "sweeps=no_teacher", "hydra.sweeper.n_trials=1", *SMALL)
    _, trial = (tmp_path / "runs/studies/no_teacher/trials.csv").read_text().splitlines()
    assert trial.split(",")[:2] == ["0", "complete"]


def test_recipes_of_ones_own_are_found(call, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/short.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 7\n")
    text = call("kd", "train", "--config-dir", "mine", "experiment=short", "--cfg", "job")
    assert yaml.safe_load(text)["trainer"]["epochs"] == 7


def test_help_and_errors_name_the_command_that_exists(call, tmp_path):
    shown = call("kd", "train", "--help")
    assert "kd train schedule=cosine unfreeze.rate=3" in shown
    trial = tmp_path / "runs/studies/mine/0"
    trial.mkdir(parents=True)
    (trial / "config.yaml").touch()
    (trial.parent / "trials.csv").touch()
    error = call("kd", "train", f"resume={trial}", fails=True)
    assert "(kd train -m)" in error
    assert "train.py" not in shown + error


@pytest.mark.slow
def test_torchrun_starts_the_command(call, tmp_path):
    torchrun = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    call(*torchrun, "kd", "train", *SMALL, OMP_NUM_THREADS="1")
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["environment"]["processes"] == 2
