"""After any stop, the metrics lines, the best weights and the checkpoint on disk agree."""

import math
import time

import pytest
import torch
from safetensors.torch import load_file
from toy import EIGHT, hand_made, loader, plan, same, train

from kd.errors import RunError
from kd.networks import saved
from kd.run import checkpoint
from kd.run.folder import RunFolder
from kd.run.journal import Journal, best_of, improves

FIGURES = [0.3, 0.7, 0.5, 0.7]


def journal(folder, network=None, minutes=None) -> Journal:
    return Journal("student", network or hand_made(), RunFolder(folder), "val/miou", {"image_size": [32, 32]}, minutes)


def go(on: Journal, epochs: int, stop_after: int | None = None) -> None:
    """Train with a validation that gives FIGURES, to the end or for `stop_after` epochs."""
    figures = iter(FIGURES[on.start.epoch if on.start else 0 :])
    items = train(on.network, plan(epochs=epochs), train=loader(EIGHT), start=on.start,
                  validate=lambda: {"miou": next(figures)})  # fmt: skip
    for done, item in enumerate(items, 1):
        on.add(item)
        if done == stop_after:
            return


def same_weights(one, other) -> bool:
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    found = journal(tmp_path_factory.mktemp("straight"))
    go(found, 4)
    return found


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_resumed_training_ends_with_the_same_lines_and_the_same_best_weights(straight, tmp_path, epochs):
    first = journal(tmp_path)
    go(first, 4, stop_after=epochs)
    second = journal(tmp_path, hand_made(seed=3))
    assert len(second.records) == epochs
    go(second, 4)
    assert second.best["epoch"] == straight.best["epoch"] == 1  # the first on ties
    assert same_weights(tmp_path / "student.safetensors", straight.file)
    assert [line["train/loss"] for line in second.folder.metrics()] == [x["train/loss"] for x in straight.records]
    if epochs < 4:
        assert same(second.network, straight.network)


def test_lines_of_epochs_after_the_checkpoint_are_dropped(tmp_path):
    first = journal(tmp_path)
    go(first, 4, stop_after=2)
    first.folder.append_metrics({**first.records[-1], "epoch": 2})
    assert [record["epoch"] for record in journal(tmp_path).records] == [0, 1]
    assert [record["epoch"] for record in first.folder.metrics()] == [0, 1]


def test_lines_without_a_checkpoint_are_dropped(tmp_path):
    RunFolder(tmp_path).append_metrics({"epoch": 0})
    found = journal(tmp_path)
    assert (found.records, found.best, found.start) == ([], None, None)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("now", ["missing", "damaged", "of a later epoch"])
def test_best_weights_are_those_in_the_checkpoint(straight, tmp_path, now):
    first = journal(tmp_path)
    go(first, 4, stop_after=3)
    file = tmp_path / "student.safetensors"
    if now == "missing":
        file.unlink()
    elif now == "damaged":
        file.write_bytes(b"no weights")
    else:
        saved.save(first.network, file, epoch=3, image_size=[32, 32])
    journal(tmp_path, hand_made(seed=3))
    assert same_weights(file, straight.file)
    assert saved.saved_facts(file)["epoch"] == 1


def test_a_missing_line_is_an_error(tmp_path):
    go(journal(tmp_path), 4, stop_after=2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(lines[1])
    with pytest.raises(RunError, match="lacks an epoch before 2"):
        journal(tmp_path)


def test_an_epochs_files_are_written_before_its_checkpoint(tmp_path, monkeypatch):
    """After a kill in between, the epoch is trained again."""
    found, seen = journal(tmp_path), []
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: seen.append(sorted(p.name for p in folder.iterdir())))
    go(found, 4, stop_after=1)
    assert seen == [["metrics.jsonl", "student.json", "student.safetensors"]]


def test_a_checkpoint_is_due_after_so_many_minutes(tmp_path):
    assert journal(tmp_path, minutes=1e-9).due()
    assert not journal(tmp_path, minutes=60).due()
    assert not journal(tmp_path, minutes=None).due()


def test_time_spent_before_a_stop_is_counted(tmp_path):
    begun, found = time.monotonic(), journal(tmp_path)
    found._spent = 1000.0
    go(found, 4, stop_after=1)
    assert 1000 < checkpoint.spent(tmp_path) < 1001 + time.monotonic() - begun
    assert checkpoint.spent(tmp_path / "nowhere") == 0


def test_another_number_of_threads_is_a_warning(tmp_path, caplog):
    go(journal(tmp_path), 4, stop_after=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        journal(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert f"threads {threads} (now {threads + 1})" in caplog.text


# what is better


@pytest.mark.parametrize(
    ("objective", "better", "worse"),
    [
        ("val/miou", 0.5, 0.4),
        ("val/dice", 0.5, 0.4),
        ("val/teacher_agreement", 1.0, 0.0),
        ("val/iou/foreground", 1e-9, 0.0),
        ("val/iou/loss", 0.5, 0.4),
        ("val/loss", 0.4, 0.5),
    ],
)
def test_higher_is_better_except_for_a_loss(objective, better, worse):
    assert improves({objective: better}, {objective: worse}, objective)
    assert not improves({objective: worse}, {objective: better}, objective)
    assert not improves({objective: better}, {objective: better}, objective)  # the first wins ties


@pytest.mark.parametrize("objective", ["val/miou", "val/loss"])
@pytest.mark.parametrize("unknown", [None, math.nan])
def test_any_figure_is_better_than_none(objective, unknown):
    assert improves({objective: 0.5}, {objective: unknown}, objective)
    assert not improves({objective: unknown}, {objective: 0.5}, objective)
    assert not improves({objective: unknown}, {objective: unknown}, objective)


def test_the_best_of_some_epochs_is_the_first_of_the_best():
    records = [{"val/miou": value, "epoch": epoch} for epoch, value in enumerate(FIGURES)]
    assert best_of(records, "val/miou")["epoch"] == 1
    assert best_of([], "val/miou") is None


def test_an_epoch_that_was_not_validated_is_the_best_only_until_one_was():
    records = [{"epoch": 0}, {"epoch": 1, "val/miou": 0.1}, {"epoch": 2}, {"epoch": 3, "val/miou": 0.1}]
    assert best_of(records[:1], "val/miou")["epoch"] == 0
    assert best_of(records, "val/miou")["epoch"] == 1
