"""The notebook, cell by cell, as a hosted one runs it: `!` lines are commands, `{name}` a variable of a cell above."""

import json
import re
import shlex
import sys
from types import ModuleType

import program
import pytest

from kd.config.compose import PROJECT

NOTEBOOK = json.loads((PROJECT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = (
    "data=shapes data.image_size=[64,64] data.train=16 data.val=8 data.test=8 backbone=tiny trainer.batch_size=8 "
    "trainer.epochs=2 teacher.epochs=2 trainer.device=cpu unfreeze.start_epoch=1 tracking=none"
)


def test_it_is_stored_without_what_a_run_printed():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


@pytest.mark.slow
def test_every_cell_runs(root, monkeypatch):
    shown = []
    pictures = ModuleType("IPython.display")
    pictures.Image, pictures.display = lambda path: path, lambda *all: shown.extend(all)
    monkeypatch.setitem(sys.modules, "IPython.display", pictures)
    monkeypatch.chdir(root)
    names = {}
    for cell in CODE:
        lines = [line for line in cell.splitlines() if not line.startswith("%pip")]
        exec("\n".join(line for line in lines if not line.startswith("!")), names)
        if "DATA" in names:
            names["DATA"] = SMALL
        for line in lines:
            if line.startswith("!"):
                filled = re.sub(r"\{(\w+)\}", lambda found: str(names[found[1]]), line[1:])
                kd, *arguments = shlex.split(filled)
                assert kd == "kd"
                if arguments[0] == "verdict":
                    arguments += ["--trials", "2", "--seeds", "2", "--price", "20"]
                done = program.run_kd(root, *arguments)
                too_short = (
                    arguments[0] == "verdict" and "there is no winner" in done.stderr
                )  # two epochs teach nothing
                assert done.returncode == 0 or too_short, done.stderr
    assert [path.name for path in shown] == ["predictions.png", "curves.png"]
    assert all(path.stat().st_size > 10_000 for path in shown)
