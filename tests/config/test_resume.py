"""Which run is resumed, with which configuration, and on which data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from kd.config import resume
from kd.config.compose import compose, plain, public
from kd.config.read import source
from kd.errors import ConfigError, RunError
from kd.settings import flat


def config(*overrides: str) -> dict:
    return public(plain(compose([*overrides])))


def folder(root: Path, name: str, *overrides: str, age: int = 0) -> Path:
    path = root / "runs" / "2026-01-01" / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(*overrides), sort_keys=False))
    os.utime(path / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    return path


def found(root: Path, *overrides: str, wanted: str | None = "auto") -> str:
    resume._newest.cache_clear()
    fresh = str(root / "runs" / "today" / "now")
    return resume.run_folder(wanted, fresh, compose([*overrides])).replace(fresh, "fresh")


# which folder


def test_without_resume_every_run_is_new(root):
    folder(root, "a")
    assert found(root, wanted=None) == "fresh"


def test_auto_takes_the_newest_run_of_the_same_configuration(root):
    folder(root, "old", "seed=1", age=9)
    new = folder(root, "new", "seed=1", age=5)
    folder(root, "other", "seed=2")
    assert found(root, "seed=1") == str(new)


def test_auto_starts_a_new_run_if_there_is_nothing_to_resume(root):
    (folder(root, "over", "seed=1") / "summary.json").write_text("{}")
    folder(root, "other", "seed=2")
    (root / "runs" / "2026-01-01" / "broken").mkdir()
    (root / "runs" / "2026-01-01" / "broken" / "config.yaml").write_text("[: }")
    assert found(root, "seed=1") == "fresh"


def test_auto_does_not_resume_trials_of_studies(root):
    (folder(root, "0", "seed=1").parent / "trials.csv").write_text("")
    assert found(root, "seed=1") == "fresh"


@pytest.mark.parametrize(
    "neutral",
    ["trainer.workers=0", "trainer.checkpoint_minutes=1", "tracking=none", "pictures=false", "teacher.cache=off"],
)
def test_auto_ignores_what_cannot_change_the_result(root, neutral):
    path = folder(root, "a")
    assert found(root, neutral) == str(path)


BAD_NEIGHBOURS = {
    "a date": "seed: 2026-11-29\n",
    "itself": "a: &a [*a]\n",
    "too deep": "[" * 5000,
    "a bomb": "a: &a [1, 1]\nb: &b [*a, *a]\n",
    "no text": "\xff\xfe",
    "a list": "[]",
}


@pytest.mark.parametrize("neighbour", [*BAD_NEIGHBOURS, "a pipe", "a loop", "a broken link", "a folder"])
def test_auto_skips_a_neighbour_that_cannot_be_read(root, neighbour, capsys):
    path, bad = folder(root, "a"), folder(root, "b") / "config.yaml"
    bad.unlink()
    if neighbour in BAD_NEIGHBOURS:
        bad.write_bytes(BAD_NEIGHBOURS[neighbour].encode("latin-1"))
    elif neighbour == "a pipe":
        os.mkfifo(bad)
    elif neighbour == "a folder":
        bad.mkdir()
    else:
        bad.symlink_to(bad if neighbour == "a loop" else root / "nowhere")
    assert found(root) == str(path)
    skipped = capsys.readouterr().err
    silent = {"a date", "a loop", "a broken link"}  # a text like another, and files that are not there
    assert skipped.count("\n") == (neighbour not in silent)
    assert (f"resume=auto skips a folder: {bad}" in skipped) == (neighbour not in silent)


def pairs(root: Path, color: int = 9) -> str:
    """A data folder of one image and mask per split."""
    for split in ("train", "val", "test"):
        for kind, value in (("images", color), ("masks", 1)):
            path = root / kind / split / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3)[: 3 if kind == "images" else 2], value, np.uint8)).save(path)
    return f"data.root={root}"


def begun_on(root: Path, data: str) -> Path:
    """A run that has recorded the content of its data."""
    path = folder(root, "a", "data=folder", data)
    (path / "run.json").write_text(json.dumps({resume.FINGERPRINT: source(config("data=folder", data)).fingerprint()}))
    return path


def test_auto_takes_a_run_whose_data_was_moved(root):
    path = begun_on(root, pairs(root / "here"))
    (root / "here").rename(root / "there")
    assert found(root, "data=folder", f"data.root={root}/there") == str(path)


@pytest.mark.parametrize("data", ["other", "missing"])
def test_auto_starts_a_new_run_on_other_data(root, data):
    begun_on(root, pairs(root / "here"))
    pairs(root / "other", color=7)
    assert found(root, "data=folder", f"data.root={root / data}") == "fresh"


@pytest.mark.parametrize("file", ["nothing", "over", "trial"])
def test_a_folder_that_cannot_be_resumed_is_refused(root, file):
    path = root / "nowhere" if file == "nothing" else folder(root, "a")
    if file == "over":
        (path / "summary.json").write_text("{}")
    if file == "trial":
        (path.parent / "trials.csv").write_text("")
    with pytest.raises(RunError, match=f"^resume={path}: "):
        found(root, wanted=str(path))


# which configuration


def merged(path: Path, *typed: str) -> dict:
    return resume.merged(path, plain(compose([*typed])), typed)


def test_a_run_resumes_with_its_folders_own_configuration(root):
    path = folder(root, "a", "seed=7", "schedule=linear", "unfreeze.rate=2")
    assert merged(path) == config("seed=7", "schedule=linear", "unfreeze.rate=2")


def test_an_override_may_repeat_what_the_run_has(root):
    path = folder(root, "a", "seed=7", "schedule=linear")
    assert merged(path, "schedule=linear", "seed=7") == merged(path)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("seed=8", "seed"), ("schedule=linear", "schedule._target_"), ("unfreeze.rate=2", "unfreeze.rate"),
        ("trainer.epochs=99", "trainer.epochs"), ("loss=hinton", "loss."), ("trainer.device=cuda", "trainer.device"),
        ("trainer.nonfinite=skip", "trainer.nonfinite"), ("experiment=arm_hard_only", "loss."),
    ],
)  # fmt: skip
def test_what_would_change_the_result_is_refused_by_name(root, typed, key):
    path = folder(root, "a", "trainer.device=cpu")
    with pytest.raises(ConfigError, match=r"cannot resume with another configuration") as caught:
        merged(path, typed)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("trainer.workers=2", "trainer.workers", 2),
        ("trainer.checkpoint_minutes=null", "trainer.checkpoint_minutes", None),
        ("data.cache=off", "data.cache", "off"), ("teacher.cache_gb=1", "teacher.cache_gb", 1),
        ("pictures=false", "pictures", False), ("tracking=none", "tracking.enabled", False),
    ],
)  # fmt: skip
def test_what_cannot_change_the_result_is_taken_over(root, typed, key, value):
    path = folder(root, "a", "seed=7")
    taken = dict(flat(merged(path, typed)))
    assert taken[key] == value
    assert {k for k, v in flat(config("seed=7")) if taken[k] != v} == {key}


@pytest.mark.parametrize(
    "chosen",
    [("data=voc", "data.root=there"), ("data=hugging_face", "data.path=there"), ("experiment=small_data",),
     ("data=voc", "data.root=there", "experiment=small_data", "trainer.workers=2"),
     ("teacher=smp", "teacher.path=there", "teacher.normalisation={mean:[0,0,0],std:[1,1,1]}")],
    ids=" ".join,
)  # fmt: skip
def test_groups_with_mappings_inside_may_be_repeated(root, chosen):
    path = folder(root, "a", *chosen)
    assert merged(path, *chosen) == config(*chosen)


def test_another_gpu_is_accepted(root):
    path = folder(root, "a", "trainer.device=cuda:0")
    assert merged(path, "trainer.device=cuda:1")["trainer"]["device"] == "cuda:1"


def test_a_data_folder_that_was_moved_is_taken_over(root):
    path = folder(root, "a", "data=folder", "data.root=here")
    assert merged(path, "data=folder", "data.root=there")["data"]["root"] == "there"


# on which data


def test_a_run_resumes_on_the_data_that_it_began_with(root):
    path = begun_on(root, pairs(root / "here"))
    (root / "here").rename(root / "there")
    resume.check_data(path, source(config("data=folder", f"data.root={root}/there")).fingerprint())


def test_a_run_does_not_resume_on_data_that_changed(root):
    path = begun_on(root, pairs(root / "here"))
    Image.fromarray(np.full((32, 32, 3), 8, np.uint8)).save(root / "here" / "images" / "train" / "a.png")
    with pytest.raises(ConfigError, match="the data has changed since this run began"):
        resume.check_data(path, source(config("data=folder", f"data.root={root}/here")).fingerprint())


@pytest.mark.parametrize("text", [None, "{}", "{", "[]"])
def test_a_run_that_has_recorded_no_data_has_not_begun(root, text):
    path = folder(root, "a")
    if text is not None:
        (path / "run.json").write_text(text)
    resume.check_data(path, "any")


def test_a_run_resumes_with_the_weights_that_it_began_with(root):
    path = folder(root, "a")
    (path / "run.json").write_text(json.dumps({"inputs": {"the teacher's weights": "a", "weights": None}}))
    resume.check_inputs(path, {"the teacher's weights": "a", "weights": None, "something new": "x"})
    with pytest.raises(ConfigError, match="the teacher's weights and weights changed since this run began"):
        resume.check_inputs(path, {"the teacher's weights": "b", "weights": "c"})


@pytest.mark.parametrize("text", [None, "{}", "{", "[]", '{"inputs": 3}'])
def test_a_run_that_has_recorded_no_weights_has_not_begun(root, text):
    path = folder(root, "a")
    if text is not None:
        (path / "run.json").write_text(text)
    assert resume.changed_inputs(path, {"the teacher's weights": "a"}) == []


def test_a_saved_store_address_without_its_password_is_not_used(root):
    path = folder(root, "a", "tracking.uri=http://me:secret@host")
    assert "secret" not in (path / "config.yaml").read_text()
    assert merged(path)["tracking"]["uri"] is None


def test_an_address_that_only_a_run_folder_says_is_not_sent_to(root):
    path = folder(root, "a", "tracking.uri=http://tracking.example:5000")
    with pytest.raises(ConfigError, match=r"was tracked at http://tracking.example:5000, .* repeat tracking.uri="):
        merged(path)
    assert (
        merged(path, "tracking.uri=http://tracking.example:5000")["tracking"]["uri"] == "http://tracking.example:5000"
    )
    assert merged(path, "tracking.uri=null")["tracking"]["uri"] is None


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['touch marker']", "\x00"])
def test_a_broken_or_malicious_configuration_is_one_line(root, text, monkeypatch):
    path = folder(root, "a")
    monkeypatch.chdir(root)
    (path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml"):
        merged(path)
    assert not (root / "marker").exists()
