"""A checkpoint is complete or not loaded: any damage is noticed, and the previous one is still there."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kd.errors import DiskError, RunError
from kd.run import checkpoint
from kd.system import tensor_file
from kd.training.snapshot import Snapshot


def snapshot(epoch: int = 1) -> Snapshot:
    torch.manual_seed(epoch)
    tensors = {
        "network.a": torch.randn(3, 2), "network.count": torch.tensor(7), "optimizer.0.exp_avg": torch.zeros(0),
        "network.half": torch.randn(4).half(),
    }  # fmt: skip
    return Snapshot(tensors, {"epoch": epoch, "step": 3, "sums": {"values": {"loss": [0.1, 1e-300]}}})


def same(one: Snapshot, other: Snapshot) -> bool:
    return one.facts == other.facts and one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(value, other.tensors[name]) and value.dtype == other.tensors[name].dtype
        for name, value in one.tensors.items()
    )  # fmt: skip


def test_what_is_loaded_is_what_was_saved(tmp_path):
    checkpoint.save(tmp_path, snapshot())
    assert same(checkpoint.load(tmp_path), snapshot())


def test_a_folder_without_checkpoints_loads_none(tmp_path):
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.load(tmp_path / "nowhere") is None
    assert not checkpoint.exists(tmp_path)


def test_the_newest_is_loaded_and_the_previous_one_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path, snapshot(epoch))
    assert same(checkpoint.load(tmp_path), snapshot(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([checkpoint.NAME, checkpoint.BEFORE])


def test_a_damaged_checkpoint_falls_back_to_the_previous_one_with_a_warning(tmp_path, caplog):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, snapshot(epoch))
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-5])
    assert same(checkpoint.load(tmp_path), snapshot(1))
    assert checkpoint.NAME in caplog.text
    assert "the previous one" in caplog.text


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_and_no_missing_end_goes_unnoticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    checkpoint.save(folder, snapshot())
    path = folder / checkpoint.NAME
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    try:
        found = checkpoint.load(folder)
    except RunError:
        return
    assert same(found, snapshot())  # a byte without meaning, such as padding


def test_if_all_are_damaged_the_error_names_what_to_delete(tmp_path):
    checkpoint.save(tmp_path, snapshot())
    (tmp_path / checkpoint.NAME).write_bytes(b"")
    with pytest.raises(RunError, match=rf"{checkpoint.NAME}.*delete"):
        checkpoint.load(tmp_path)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / checkpoint.NAME).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(RunError):
        checkpoint.load(tmp_path)
    torch.save({"state": Payload(marker)}, tmp_path / checkpoint.NAME)
    with pytest.raises(RunError):
        checkpoint.load(tmp_path)
    assert not marker.exists()


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / checkpoint.NAME)
    with pytest.raises(RunError):
        checkpoint.load(tmp_path)


def test_a_failed_save_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, snapshot(1))

    def full(tensors, path, **_):
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(DiskError, match=rf"{checkpoint.NAME}: No space left on device; "):
        checkpoint.save(tmp_path, snapshot(2))
    assert same(checkpoint.load(tmp_path), snapshot(1))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_copy_does_not_change_with_the_original(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for epoch in (1, 2):
        checkpoint.save(source, snapshot(epoch))
    checkpoint.copy(source, target)
    checkpoint.save(source, snapshot(3))
    checkpoint.remove(source)
    assert same(checkpoint.load(target), snapshot(2))
    assert not checkpoint.exists(source)
