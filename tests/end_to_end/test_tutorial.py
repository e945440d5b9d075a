"""Every command of docs/tutorial.md, in its order, on a miniature data set and with trainings made small."""

import shlex

import pairs
import program
import pytest

from kd.config.compose import PROJECT

SMALL = (
    "backbone=tiny data.image_size=[64,64] trainer.batch_size=2 teacher.epochs=1 trainer.device=cpu augment=none "
    "unfreeze.start_epoch=1 unfreeze.rate=1"
).split()
EPOCHS = ("trainer.epochs=40", "trainer.epochs=6")
STUDY = ["hydra.sweeper.n_trials=2"]
WINNER = ["seed=0,1"]
VERDICT = ["--trials=2", "--seeds=2"]


def commands() -> list[list[str]]:
    """The words of each command of the page, in order."""
    found, inside = [], False
    for line in (PROJECT / "docs" / "tutorial.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```sh"
        elif inside:
            found.append(shlex.split(line))
    return found


@pytest.fixture
def place(tmp_path):
    """Half of each picture is red, the left or the right one, and the other half is the foreground."""
    for number, split in enumerate(["train"] * 8 + ["val"] * 2 + ["test"] * 2):
        turn = slice(None, None, 1 if number % 2 else -1)
        image, labels = pairs.picture(value=10 * number)[:, turn], pairs.mask()[:, turn]
        pairs.put(tmp_path / "my_data", f"{number}", image, labels, split=split)
    pairs.save(pairs.picture(), tmp_path / "pictures" / "new.png")
    return tmp_path


def smaller(words: list[str]) -> list[str]:
    """A command with everything made small that it says nothing about."""
    words = [word.replace(*EPOCHS) for word in words]
    if words[:2] == ["python", "train.py"]:
        more = (WINNER if "sweeps=winner" in words else STUDY) if "-m" in words else []
        return [*words, *SMALL, *more]
    if words[:2] == ["kd", "verdict"]:
        return [*words[:2], *VERDICT, *words[2:], *SMALL]
    return [*words, *SMALL] if words[1] in ("check", "preview") else words


@pytest.mark.slow
def test_a_stranger_gets_from_a_folder_of_images_to_a_deployed_file(place, monkeypatch):
    monkeypatch.chdir(place)
    assert {words[1] for words in commands()} == {
        "train.py", "check", "preview", "report", "verdict", "study", "export", "bench-model", "predict",
    }  # fmt: skip
    said, run = {}, None
    for words in map(smaller, commands()):
        words = [str(run) if word == "runs/first" else word for word in words]
        if words[0] == "python":
            done = program.train(place, *words[2:], cwd=place)
        else:
            done = program.run_kd(place, *words[1:])
        assert done.returncode == 0, (words, done.stderr, done.stdout)
        said[words[1]] = done.stdout
        if words[1] == "train.py" and run is None:
            (run,) = place.glob("runs/2*/*")
    assert "no problems" in said["check"]
    assert "verdict  " in said["verdict"]
    assert (place / "masks" / "new.png").is_file()
    assert (run / "export" / "student.int8.onnx").is_file()
    assert list(run.glob("*.html"))
