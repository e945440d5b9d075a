"""A file is read once for a manifest, until it changes; damage and disks that cannot be written cost time alone."""

import json
import pickle

import pytest
from pairs import put

from kd.data import Folder
from kd.data.files import manifest
from kd.data.files.manifest import Manifest
from kd.errors import DataError
from kd.system import files


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(manifest, "LEAST", 1)


@pytest.fixture
def three(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


def sizes(kept, paths):
    """What a manifest finds of files, and which of them it reads."""
    read = []
    found = Manifest(kept).find("text", paths, lambda path: read.append(path.name) or path.read_text())
    return found, sorted(read)


def test_an_unchanged_file_is_read_once(three, tmp_path):
    kept = tmp_path / "files" / "kept.json"
    assert sizes(kept, three) == (["a", "b", "c"], ["a", "b", "c"])
    assert sizes(kept, three) == (["a", "b", "c"], [])
    three[1].write_text("other")
    assert sizes(kept, three) == (["a", "other", "c"], ["b"])
    assert sizes(kept, three[:1]) == (["a"], [])
    assert sizes(None, three)[1] == ["a", "b", "c"]


def test_a_file_that_is_gone_is_forgotten(three, tmp_path):
    kept = tmp_path / "kept.json"
    sizes(kept, three)
    three[2].unlink()
    three[0].write_text("new")
    sizes(kept, three[:1])
    assert json.loads(kept.read_text()).keys() == {str(path) for path in three[:2]}


@pytest.mark.parametrize("damage", ["", "[]", "{", "null", '{"a": 1}', "[" * 100_000])
def test_a_damaged_manifest_is_made_again(damage, three, tmp_path):
    kept = tmp_path / "kept.json"
    sizes(kept, three)
    kept.write_text(damage)
    assert sizes(kept, three) == (["a", "b", "c"], ["a", "b", "c"])
    assert sizes(kept, three)[1] == []


def test_a_folder_that_cannot_be_written_changes_nothing(three, tmp_path):
    (tmp_path / "file").touch()
    assert sizes(tmp_path / "file" / "kept.json", three) == (["a", "b", "c"], ["a", "b", "c"])


def test_a_data_set_is_hashed_once_for_all_processes(tmp_path, monkeypatch):
    for split in ("train", "val"):
        put(tmp_path / "data", "a", split=split)
    put(tmp_path / "data", "b")
    one, other = (Folder(tmp_path / "data", image_size=(32, 64)) for _ in range(2))
    plain = Folder(tmp_path / "data", image_size=(32, 64)).fingerprint()
    one.keep_findings(tmp_path / "kept")
    assert one.fingerprint() == plain
    (kept,) = (tmp_path / "kept").iterdir()
    assert len(json.loads(kept.read_text())) == 6
    monkeypatch.setattr(files, "digest", lambda *_: pytest.fail("a file is read again"))
    other.keep_findings(tmp_path / "kept")
    assert other.fingerprint() == plain
    assert pickle.loads(pickle.dumps(other)).fingerprint() == plain


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for split in ("train", "val"):
        put(tmp_path, "a", split=split)
    source = Folder(tmp_path, image_size=(32, 64))
    assert source.size("train") == 1
    (tmp_path / "images" / "train" / "a.png").unlink()
    source.keep_findings(tmp_path / "kept")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        source.fingerprint()
