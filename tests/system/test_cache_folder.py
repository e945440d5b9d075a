"""The entries of a cache folder: what they use, which are superfluous, and that nothing else is touched."""

import os
import time
from pathlib import Path

import pytest
from caches import NEW, OLD, everything, fill, names
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.system.cache_folder import DAY, GB, HOUR, Entry, clear, entries, superfluous
from kd.system.record_file import create


@pytest.fixture
def cache(tmp_path) -> Path:
    return fill(tmp_path / "cache")


def test_the_size_of_an_entry_is_its_disk_usage(cache):
    file = cache / "teacher" / OLD / "view-000003.records"
    create(file, 1000, 4096)
    (entry,) = (entry for entry in entries(cache) if entry.path.name == OLD)
    assert entry.bytes == sum(path.stat().st_blocks * 512 for path in entry.path.iterdir())
    assert entry.bytes < sum(path.stat().st_size for path in entry.path.iterdir())
    assert entry.used == file.stat().st_mtime
    (entry,) = (entry for entry in entries(cache) if entry.path.name == NEW)
    assert entry.used == max(path.stat().st_mtime for path in entry.path.iterdir())


def test_entries_are_sorted_by_kind_and_last_use(cache):
    kinds = [name.partition("/")[0] for name in names(cache)]
    assert kinds == ["teacher", "teacher", "data", "figures", "files"]
    assert names(cache)[:2] == [f"teacher/{NEW}", f"teacher/{OLD}"]


def test_a_missing_cache_folder_has_no_entries(tmp_path):
    assert entries(tmp_path / "cache") == []
    clear(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_deleting_an_entry_keeps_a_folder_with_other_files(cache):
    (cache / "teacher" / OLD / "notes.txt").write_text("mine")
    for entry in entries(cache):
        entry.delete()
    assert {name for name, content in everything(cache).items() if content is not None} == {f"teacher/{OLD}/notes.txt"}


def test_only_old_temporary_files_are_cleared(cache):
    ends = ("abcdefgh", "ijklmnop")
    for name in (f"figures/.{NEW}.safetensors.{{}}.safetensors", f"files/.{NEW}.json.{{}}.json"):
        young, old = (cache / name.format(end) for end in ends)
        for path in (young, old):
            path.write_text("partial")
        os.utime(old, (time.time() - 2 * HOUR,) * 2)
        clear(cache)
        assert (young.exists(), old.exists()) == (True, False)


class Made(Entry):
    """An entry with a given size and age, without files."""

    def __init__(self, name: int, size: int, age: float) -> None:
        super().__init__("data", Path(str(name)))
        self.__dict__.update(bytes=size, used=-age * DAY)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.floats(0, 100)), max_size=8),
    st.none() | st.floats(0, 100),
    st.none() | st.integers(0, 50),
)
def test_superfluous_entries_are_the_old_and_the_least_recently_used(made, days, keep):
    found = [Made(number, size, age) for number, (size, age) in enumerate(made)]
    doomed = superfluous(found, days, None if keep is None else keep / GB, now=0)
    kept = [entry for entry in found if entry not in doomed]
    old = [entry for entry in found if days is not None and -entry.used > days * DAY]
    assert not set(old) & set(kept)
    if keep is not None:
        assert sum(entry.bytes for entry in kept) <= keep
    young = [entry for entry in doomed if entry not in old]
    assert all(one.used <= other.used for one in young for other in kept)
    if young:
        assert keep is not None
        assert sum(entry.bytes for entry in [*kept, young[-1]]) > keep
