"""What a checkpoint knows of run.json and metrics.jsonl is restored, however those are damaged."""

import os
from pathlib import Path

import pytest
from toy import EIGHT, hand_made, loader, plan, train

from kd.errors import RunError
from kd.run import checkpoint
from kd.run.folder import RunFolder
from kd.run.journal import Journal
from kd.run.restoring import restore
from kd.system.untrusted import UnreadableError

FACTS = {
    "id": "abc",
    "name": "defaults",
    "status": "RUNNING",
    "begun": 1.5,
    "data_fingerprint": "f",
    "tags": {"a": "b"},
}


def trained(folder: RunFolder, epochs: int = 2) -> Journal:
    folder.identify(**FACTS)
    journal = Journal("student", hand_made(), folder, "val/miou", {"image_size": [32, 32]}, None)
    for item in train(journal.network, plan(epochs=epochs), train=loader(EIGHT), validate=lambda: {"miou": 0.5}):
        journal.add(item)
    return journal


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def odd(file: Path) -> None:
    file.write_text('{"id": 5, "tags": null, "epoch": "first"}\n')


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("damage", [Path.unlink, cut, odd, as_pipe, as_link])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_damaged_file_is_restored_from_the_checkpoint_and_named(folder, name, damage):
    records = trained(folder).records
    damage(folder / name)
    (line,) = restore(folder)
    assert line.startswith(f"{name} ")
    assert line.endswith("it is restored from the checkpoint")
    assert folder.identity() == FACTS
    assert folder.metrics() == records
    assert restore(folder) == []


def test_lines_of_later_epochs_are_no_damage(folder):
    journal = trained(folder)
    folder.append_metrics({**journal.records[-1], "epoch": 2})
    assert restore(folder) == []


def test_the_previous_checkpoint_restores_as_well(folder):
    journal = trained(folder)
    cut(folder / checkpoint.NAME)
    (folder / "run.json").unlink()
    (folder / "metrics.jsonl").unlink()
    assert len(restore(folder)) == 2
    assert folder.identity() == FACTS
    assert folder.metrics() == journal.records[:1]


def test_without_a_checkpoint_nothing_is_restored_and_the_error_is_one_line(folder):
    folder.identify(**FACTS)
    cut(folder / "run.json")
    assert restore(folder) == []
    with pytest.raises(UnreadableError, match=r"run\.json is damaged"):
        folder.identity()


def test_a_checkpoint_of_another_network_is_refused(folder, tmp_path):
    trained(folder)
    with pytest.raises(RunError, match="is of another network"):
        Journal("student", hand_made(norm=False), folder, "val/miou", {}, None)
