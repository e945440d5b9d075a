"""Which run is gone on with, what may be another then, and that a run belongs to one process."""

import multiprocessing
import os
from pathlib import Path

import pytest
import yaml

from kd.config import resume
from kd.config.compose import compose, plain, public
from kd.errors import ConfigError, RunError


def config(*overrides: str) -> dict:
    return public(plain(compose(list(overrides))))


def folder(root: Path, name: str, *overrides: str, age: int = 0) -> Path:
    path = root / "runs" / "2026-01-01" / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(*overrides), sort_keys=False))
    os.utime(path / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    return path


def found(root: Path, *overrides: str, wanted: str | None = "auto") -> str:
    resume._newest.cache_clear()
    fresh = str(root / "runs" / "today" / "now")
    return resume.run_folder(wanted, fresh, compose(list(overrides))).replace(fresh, "fresh")


# which folder


def test_without_it_every_run_is_a_fresh_one(root):
    folder(root, "a")
    assert found(root, wanted=None) == "fresh"


def test_auto_takes_the_newest_run_of_the_same_configuration(root):
    folder(root, "old", "seed=1", age=9)
    new = folder(root, "new", "seed=1", age=5)
    folder(root, "other", "seed=2")
    assert found(root, "seed=1") == str(new)


def test_auto_begins_where_there_is_nothing_to_go_on_with(root):
    (folder(root, "over", "seed=1") / "summary.json").write_text("{}")
    folder(root, "other", "seed=2")
    (root / "runs" / "2026-01-01" / "broken").mkdir()
    (root / "runs" / "2026-01-01" / "broken" / "config.yaml").write_text("[: }")
    assert found(root, "seed=1") == "fresh"


def test_auto_leaves_the_trials_of_studies_alone(root):
    (folder(root, "0", "seed=1").parent / "trials.csv").write_text("")
    assert found(root, "seed=1") == "fresh"


@pytest.mark.parametrize(
    "free", ["trainer.workers=0", "trainer.checkpoint_minutes=1", "tracking=none", "pictures=false"]
)
def test_auto_looks_past_what_cannot_change_the_result(root, free):
    path = folder(root, "a")
    assert found(root, free) == str(path)


@pytest.mark.parametrize("file", ["nothing", "over", "trial"])
def test_a_folder_that_cannot_be_gone_on_with_is_refused(root, file):
    path = root / "nowhere" if file == "nothing" else folder(root, "a")
    if file == "over":
        (path / "summary.json").write_text("{}")
    if file == "trial":
        (path.parent / "trials.csv").write_text("")
    with pytest.raises(RunError, match=f"^resume={path}: "):
        found(root, wanted=str(path))


# which configuration


def merged(path: Path, *typed: str) -> dict:
    return resume.merged(path, plain(compose(list(typed))), typed)


def test_the_folders_own_configuration_is_gone_on_with(root):
    path = folder(root, "a", "seed=7", "schedule=linear", "unfreeze.rate=2")
    assert merged(path) == config("seed=7", "schedule=linear", "unfreeze.rate=2")


def test_what_is_typed_may_be_the_same(root):
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
    with pytest.raises(ConfigError, match=r"cannot go on with another configuration") as caught:
        merged(path, typed)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [("trainer.workers=2", "workers", 2), ("trainer.checkpoint_minutes=null", "checkpoint_minutes", None)],
)
def test_what_cannot_change_the_result_is_taken_over(root, typed, key, value):
    path = folder(root, "a", "seed=7")
    assert merged(path, typed)["trainer"][key] == value
    assert merged(path, typed)["seed"] == 7


def test_one_gpu_is_as_good_as_another(root):
    path = folder(root, "a", "trainer.device=cuda:0")
    assert merged(path, "trainer.device=cuda:1")["trainer"]["device"] == "cuda:1"


def test_a_stores_address_without_its_password_is_not_used(root):
    path = folder(root, "a", "tracking.uri=http://me:secret@host")
    assert "secret" not in (path / "config.yaml").read_text()
    assert merged(path)["tracking"]["uri"] is None


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['touch marker']", "\x00"])
def test_a_broken_or_malicious_configuration_is_one_line(root, text, monkeypatch):
    path = folder(root, "a")
    monkeypatch.chdir(root)
    (path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml"):
        merged(path)
    assert not (root / "marker").exists()


# one process


def _hold(path: Path, ready, done) -> None:
    with resume.only_one(path):
        ready.set()
        done.wait(30)


def test_a_second_process_is_told_so(tmp_path):
    spawn = multiprocessing.get_context("forkserver")
    ready, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(RunError, match="another process is at work"), resume.only_one(tmp_path):
        pass
    done.set()
    other.join()
    with resume.only_one(tmp_path):
        pass


def test_the_lock_of_a_process_that_was_killed_is_gone_with_it(tmp_path):
    spawn = multiprocessing.get_context("forkserver")
    ready, never = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, ready, never))
    other.start()
    assert ready.wait(60)
    other.kill()
    other.join()
    with resume.only_one(tmp_path):
        pass
