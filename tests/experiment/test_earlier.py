"""What a run takes from an earlier attempt, and what it says of it."""

import pytest

from kd.experiment.earlier import inherit, is_complete, say_other_environment
from kd.run import checkpoint
from kd.run.folder import RunFolder
from kd.system.untrusted import UnreadableError
from kd.training.snapshot import Snapshot

FACTS = {"cpu": "a", "threads": 2, "device": "cpu", "processes": 1, "packages": {"torch": "2.15.0"}}
CONFIG = {"seed": 0, "tracking": {"uri": None}}


def with_checkpoint(path) -> RunFolder:
    folder = RunFolder(path)
    folder.path.mkdir(exist_ok=True)
    checkpoint.save(folder.path, Snapshot({}, {"epoch": 0, "step": 0}))
    return folder


def test_a_run_with_a_summary_is_complete_and_one_without_is_not(tmp_path):
    folder = RunFolder(tmp_path)
    assert not is_complete(folder)
    folder.write_summary({"best_epoch": 1})
    assert is_complete(folder)


def test_a_damaged_summary_is_written_again_if_there_is_a_checkpoint(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UnreadableError):
        is_complete(RunFolder(tmp_path))
    assert not is_complete(with_checkpoint(tmp_path))
    assert "summary.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        ({"threads": 1}, "began with threads 2, now 1: its"),
        ({"device": "cuda", "packages": {}}, "began with torch 2.15.0, now None; device cpu, now cuda: its"),
    ],
)
def test_what_may_change_the_last_bits_is_said_to_a_run_that_goes_on(change, line, tmp_path, capsys):
    folder = with_checkpoint(tmp_path)
    folder.identify(environment=FACTS)
    say_other_environment(folder, FACTS | change)
    said = capsys.readouterr().out
    assert (line in said) if line else said == ""
    checkpoint.remove(tmp_path)
    say_other_environment(folder, FACTS | change)
    assert capsys.readouterr().out == ""


def test_a_trial_takes_over_the_checkpoint_of_an_attempt_with_its_configuration(tmp_path):
    before, own, other = (RunFolder(tmp_path / name) for name in ("before", "own", "other"))
    for folder in (before, own, other):
        folder.write_config(CONFIG)
    assert not inherit(before.path, own.path, CONFIG)  # it has nothing
    with_checkpoint(before.path)
    before.write_metrics([{"epoch": 0}])
    assert not inherit(before.path, other.path, CONFIG | {"seed": 1})
    assert inherit(before.path, own.path, CONFIG)
    assert checkpoint.exists(own.path)
    assert own.metrics() == [{"epoch": 0}]
    assert not inherit(before.path, own.path, CONFIG)  # it has a checkpoint of its own
