"""A small network and a folder with everything that can be exported of it."""

import json

import pytest
from exported import ABOUT, DATA, SIZE, check_of, network
from made_once import made_once

from kd.deploy.export import Wanted, export


@pytest.fixture(scope="session")
def tiny():
    """A network; not to be changed."""
    return network()


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory):
    """A folder with every export of `tiny`, and what was found of each file; not to be changed."""

    def make(folder):
        wanted = Wanted(fp16=True, int8=True)
        found = export(tiny, SIZE, folder / "files" / "student", wanted, check_of(tiny), ABOUT, DATA)
        (folder / "found.json").write_text(json.dumps(dict(found)))

    folder = made_once(tmp_path_factory, "exported", make)
    return folder / "files", json.loads((folder / "found.json").read_text())
