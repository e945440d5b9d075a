"""Where the package is, and how its commands are typed there."""

import re

import pytest

from kd.config.compose import PROJECT
from kd.system import installation
from kd.system.installation import INSTALLED, install_command, torch_command, train_command, version


def test_a_clone_is_not_an_installation():
    assert not INSTALLED
    assert re.search(rf'^version = "{re.escape(version())}"$', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("installed", "called", "expected"),
    [
        (False, "train.py", "python train.py"),
        (False, "/usr/bin/kd", "python train.py"),
        (False, "kd train", "kd train"),
        (True, "/usr/bin/kd", "kd train"),
        (True, "train.py", "kd train"),  # a script of the user's own
    ],
)
def test_the_advised_command_exists_here(monkeypatch, installed, called, expected):
    monkeypatch.setattr(installation, "INSTALLED", installed)
    monkeypatch.setattr("sys.argv", [called])
    script = "train.py" if expected == "python train.py" else "--no-python kd train"
    assert train_command() == expected
    assert train_command(processes=4) == f"torchrun --nproc-per-node=4 {script}"


def test_an_extra_is_added_to_a_clone_without_replacing_it(monkeypatch):
    assert install_command("ray") == "pip install -e '.[ray]'"
    monkeypatch.setattr(installation, "INSTALLED", True)
    assert install_command("ray") == "pip install 'kd-sweeper[ray]'"


def test_the_advised_torch_and_torchvision_are_those_of_the_project(monkeypatch):
    assert torch_command() == "pip install --require-hashes -r requirements.lock"
    monkeypatch.setattr(installation, "INSTALLED", True)
    assert re.fullmatch(r"pip install 'torch[<>]\S+' 'torchvision[<>]\S+'", torch_command())
