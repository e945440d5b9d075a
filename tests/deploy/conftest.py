"""A run folder with an exported student, images to predict, and a check for errors of one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from finished import finished
from made_once import made_once
from PIL import Image

from kd.cli import main


def _export(folder: Path) -> None:
    finished(folder)
    main(["export", str(folder), "--format", "onnx"])


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run folder with its ONNX file; not to be changed."""
    return made_once(tmp_path_factory, "deployed", _export)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def photos(tmp_path):
    """A folder of images of several sizes, one of them in a folder of its own."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    for name, size in (("a.png", (40, 70)), ("b.jpg", (32, 32)), ("sub/c.png", (9, 5))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def refused(capsys):
    """Run a verb of `kd` that fails; returns the one line of its error."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return call
