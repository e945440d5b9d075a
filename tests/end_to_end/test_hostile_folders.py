"""Any file of a run folder may be damaged, or made by somebody hostile: a command ends in one line, soon, and harmless.

A few examples, always the same; `make crash` draws KD_FUZZ new ones.
"""

import os
import shutil
from pathlib import Path

import fuzzing
import program
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_once import made_once
from PIL import Image

LONG = "KD_FUZZ" in os.environ
SMALL = [
    "backbone=tiny", "loss=hard_only", "unfreeze.start_epoch=1", "unfreeze.rate=1", "data.image_size=[32,32]",
    "data.train=8", "data.val=4", "data.test=4", "trainer.batch_size=4", "trainer.epochs=2", "trainer.device=cpu",
    "pictures=false",
]  # fmt: skip
STUDY = [
    "-m", *SMALL, "hydra.sweeper.study_name=study", "hydra.sweeper.n_trials=1", "hydra/sweeper/pruner=none",
    "optimizer.encoder_lr_scale=0.3", "schedule=cosine", "schedule.final=1.0", "tracking=none",
]  # fmt: skip
FILES = [
    "config.yaml", "run.json", "metrics.jsonl", "summary.json", "evidence.json", "evidence.safetensors", "student.json",
    "student.safetensors", "checkpoint.safetensors", "checkpoint.before.safetensors", ".hydra/overrides.yaml", ".hydra",
    ".lock", "train.log", "curves.png", "export", "report.html", "nonfinite.json", ".tmpabc123", "trials.csv",
]  # fmt: skip
OF_A_STUDY = ["../studies.db", "trials.csv", "plots", "experiment", "report.html", *(f"0/{name}" for name in FILES)]

FINISHED, INTERRUPTED, OF_STUDY = "runs/one/finished", "runs/one/interrupted", "runs/studies/study"

#: (folder, its files, a command that reads them); RUN, OTHER and ROOT stand for paths
CASES = [
    (FINISHED, FILES, ["report", "RUN"]),
    (FINISHED, FILES, ["report", "RUN", "OTHER"]),
    (FINISHED, FILES, ["sync", "RUN"]),
    (FINISHED, FILES, ["sync", "RUN", "--register", "name"]),
    (FINISHED, FILES, ["predict", "RUN", "ROOT/pictures", "-o", "ROOT/out"]),
    (FINISHED, FILES, ["export", "RUN", "--format", "onnx"]),
    (FINISHED, FILES, ["bench-model", "RUN", "--rounds", "1", "--batch", "1"]),
    (FINISHED, FILES, ["train.py", "resume=RUN"]),
    (INTERRUPTED, FILES, ["train.py", "resume=RUN"]),
    (INTERRUPTED, FILES, ["train.py", *SMALL, "resume=auto"]),
    (INTERRUPTED, FILES, ["report", "RUN"]),
]
CASES_OF_A_STUDY = [
    (OF_STUDY, OF_A_STUDY, ["study", "study"]),
    (OF_STUDY, OF_A_STUDY, ["report", "RUN"]),
    (OF_STUDY, OF_A_STUDY, ["train.py", *STUDY]),
]


def _make(root: Path) -> None:
    """A finished run, an interrupted one and pictures; for the long form, a study as well."""
    for folder, steps in ((INTERRUPTED, 3), (FINISHED, None)):
        stop = [] if steps is None else [program.stop_after, steps]
        run = program.begin(root, *SMALL, f"hydra.run.dir={root / folder}", before=stop)
        if steps is not None:
            run.wait_until_stopped()
            run.kill()
        run.communicate()
    if LONG:
        program.train(root, *STUDY).check_returncode()
    (root / "pictures").mkdir()
    Image.new("RGB", (40, 30)).save(root / "pictures" / "one.png")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The root of these runs; not to be changed."""
    return made_once(tmp_path_factory, "hostile", _make)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@settings(
    max_examples=int(os.environ.get("KD_FUZZ", "8")),
    derandomize=not LONG,
    phases=[Phase.generate],  # each example takes a second, and looking for a smaller one takes hundreds
    suppress_health_check=list(HealthCheck),
)
@given(case=st.sampled_from(CASES + CASES_OF_A_STUDY * LONG), data=st.data())
def test_a_damaged_or_hostile_folder_ends_a_command_in_one_line_soon_and_harms_nothing(home, place, case, data):
    folder, files, command = case
    damages = data.draw(st.lists(fuzzing.damages(files), min_size=1, max_size=2))
    root, outside = place / "root", place / "outside"
    for each in (root, outside):
        shutil.rmtree(each, ignore_errors=True)
    shutil.copytree(home, root, symlinks=True)
    outside.mkdir()
    (outside / "file").write_text("{}")
    for each in damages:
        each.do(root / folder / each.name, outside)
    paths = {"RUN": root / folder, "OTHER": root / INTERRUPTED, "ROOT": root}
    for name, path in paths.items():
        command = [word.replace(name, str(path)) for word in command]
    done = fuzzing.run(root, command)
    assert not fuzzing.complaints(done, root), (command, damages, fuzzing.complaints(done, root))
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "{}"}
