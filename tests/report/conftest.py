"""Two trained runs, with and without a teacher, made once per session; and copies of one to be changed."""

import re
import shutil
from pathlib import Path

import browser
import program
import pytest
from made_once import made_once

from kd.system import tensor_file

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=16", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.device=cpu", "unfreeze.start_epoch=1", "unfreeze.rate=1", "teacher.epochs=1",
    "data.classes=3", "data.class_names=[sky,road,car]",
]  # fmt: skip


def _train(root: Path) -> None:
    """Train a student with a teacher, and one without, of another seed."""
    for name, overrides in (("distilled", []), ("alone", ["loss=hard_only", "seed=7"])):
        done = program.train(root, *SMALL, *overrides)
        done.check_returncode()
        (root / name).write_text(re.search(r"^run +(\S+)$", done.stdout, re.MULTILINE).group(1))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The project root of the runs; not to be changed."""
    return made_once(tmp_path_factory, "reported", _train)


@pytest.fixture(scope="session")
def distilled(home) -> Path:
    return Path((home / "distilled").read_text())


@pytest.fixture(scope="session")
def alone(home) -> Path:
    """A student without a teacher, of another seed."""
    return Path((home / "alone").read_text())


@pytest.fixture
def copied(distilled, tmp_path) -> Path:
    return shutil.copytree(distilled, tmp_path / "runs" / "2026-01-01" / "12-00-00")


@pytest.fixture
def lean(copied) -> Path:
    """A run folder whose page is drawn quickly: without the diagrams of its calibration."""
    seen, facts = tensor_file.read(copied / "evidence.safetensors")
    kept = {name: tensor for name, tensor in seen.items() if not name.endswith("calibration")}
    tensor_file.write(copied / "evidence.safetensors", kept, facts)
    return copied


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as opened:
        yield opened
