"""Cached samples equal those of their source, which reads each of them once if the budget allows."""

import multiprocessing
import os
import pickle
import resource
import signal
from dataclasses import replace

import cv2
import numpy as np
import PIL
import pytest
import together
from pairs import put
from PIL import Image

from kd.data import Folder, Shapes
from kd.data import cache as module
from kd.data.batches.loading import EvalLoader, Loading
from kd.data.cache import Samples, cached, share
from kd.errors import DataError
from kd.system import shared_memory
from kd.system.cache_folder import entries
from kd.system.record_file import FileRecords, file_bytes
from kd.system.world import SOLO, World

SIZES = {"train": 7, "val": 3, "test": 2}
RECORD = 4 * 32 * 32  # bytes: three colours and a mask
FORK = multiprocessing.get_context("fork")


class Counted(Shapes):
    """Shapes that count over all processes how often they are drawn."""

    drawn = FORK.Value("i", 0)

    def read(self, split, index):
        with self.drawn.get_lock():
            self.drawn.value += 1
        return super().read(split, index)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(module, "_memory", {})
    Counted.drawn.value = 0


def source(cache="ram", of=Counted, **options) -> Shapes:
    return of(image_size=(32, 32), cache=cache, **(SIZES | options))


def read_all(samples) -> list[bytes]:
    return [part.tobytes() for split, size in SIZES.items() for index in range(size)
            for part in samples.read(split, index)]  # fmt: skip


ALL = sum(SIZES.values())


@pytest.fixture(scope="module")
def expected():
    return read_all(source(of=Shapes))


@pytest.mark.parametrize(("cache", "drawn"), [("ram", ALL), ("disk", ALL), ("off", 2 * ALL)])
def test_samples_are_read_from_the_source_once(cache, drawn, expected, root):
    samples = cached(source(cache), root)
    for _ in range(2):
        assert read_all(samples) == expected
    assert Counted.drawn.value == drawn
    assert [samples.size(split) for split in SIZES] == list(SIZES.values())


@pytest.mark.parametrize("cache", ["ram", "disk", "off"])
def test_a_sample_has_the_right_shape_and_dtype_and_is_a_copy(cache, root, expected):
    samples = cached(source(cache), root)
    for _ in range(2):
        image, mask = samples.read("val", 1)
        assert (image.shape, mask.shape) == ((32, 32, 3), (32, 32))
        assert image.dtype == mask.dtype == np.uint8
        image[:], mask[:] = 0, 0  # what an augmentation may do
    assert read_all(samples) == expected


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_missing_sample_raises_the_sources_error(cache, root):
    samples = cached(source(cache), root)
    for index in (-1, 7):
        with pytest.raises(IndexError, match=r"index must be in 0\.\.6 for train"):
            samples.read("train", index)
    with pytest.raises(ValueError, match="split must be one of"):
        samples.read("trial", 0)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_sample_that_failed_is_read_again(cache, root):
    class Broken(Shapes):
        def read(self, split, index):
            raise DataError("broken: mend it")

    samples = cached(source(cache, of=Broken), root)
    for _ in range(2):
        with pytest.raises(DataError, match="broken"):
            samples.read("train", 0)
    assert read_all(Samples(source(of=Shapes), samples._records)) == read_all(source(of=Shapes))


# who shares it


@pytest.mark.parametrize(("cache", "drawn"), [("ram", ALL), ("disk", ALL), ("off", 3 * ALL)])
def test_successive_runs_of_a_process_share_the_samples(cache, drawn, expected, root):
    for _ in range(3):
        assert read_all(cached(source(cache), root)) == expected
    assert Counted.drawn.value == drawn


def test_another_data_set_replaces_the_cache_in_memory(root):
    read_all(cached(source(), root))
    other = cached(source(seed=1), root)
    assert read_all(other) == read_all(source(seed=1, of=Shapes))
    assert {key for key, _ in module._memory} == {source(seed=1).fingerprint()}


def test_a_changed_file_makes_another_data_set(root):
    for split in ("train", "val"):
        put(root / "data", "s", split=split)
    folder = Folder(root / "data", image_size=(32, 32), cache="disk")
    before = cached(folder, root / "cache").read("train", 0)[0].copy()
    picture = root / "data" / "images" / "train" / "s.png"
    with Image.open(picture) as image:
        Image.eval(image, lambda value: 255 - value).save(picture)
    after = cached(replace(folder), root / "cache").read("train", 0)[0]
    assert np.array_equal(after, replace(folder, cache="off").read("train", 0)[0])
    assert not np.array_equal(after, before)
    assert len(list((root / "cache").iterdir())) == 2


@pytest.mark.parametrize("library", [PIL, cv2, np], ids=lambda library: library.__name__)
def test_samples_decoded_by_another_version_are_not_used(library, root, monkeypatch):
    read_all(cached(source("disk"), root))
    monkeypatch.setattr(library, "__version__", "0.0")
    read_all(cached(source("disk"), root))
    assert Counted.drawn.value == 2 * ALL


def test_the_disk_cache_outlives_the_process(root, expected):
    reader = FORK.Process(target=lambda: read_all(cached(source("disk"), root)))
    reader.start()
    reader.join(600)
    assert read_all(cached(source("disk"), root)) == expected
    assert Counted.drawn.value == ALL


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_workers_fill_the_cache_of_the_main_process(cache, root, expected):
    samples = cached(source(cache), root)
    for split in SIZES:
        loader = EvalLoader(samples, split, 2, Loading(workers=2))
        assert sum(len(batch) for batch in loader) == SIZES[split]
    assert Counted.drawn.value == ALL
    assert read_all(samples) == expected
    assert Counted.drawn.value == ALL


def test_a_process_that_unpickles_the_samples_shares_those_in_memory(root, expected):
    samples = cached(source(), root)
    other = pickle.loads(pickle.dumps(samples))
    assert read_all(other) == read_all(samples) == expected
    assert Counted.drawn.value == ALL


class Tallied(Shapes):
    """Shapes that leave a byte in a file whenever they are drawn, for processes that are not forked from this one."""

    tally = None

    def read(self, split, index):
        with self.tally.open("ab") as file:
            file.write(b"x")
        return super().read(split, index)


def read_together(world, folder, machines=1, reachable=True):
    """Read a process's part of the samples, then all of them: what it got, whether it shares, and its room."""
    Tallied.tally = folder / "tally"
    module._memory.clear()
    if not reachable:
        shared_memory.PROCESSES = folder
    if machines > 1:
        world = replace(world, local_rank=0, local_size=1)
    shares = share(source(of=Tallied, cache_gb=(ALL + 0.5) * file_bytes(1, RECORD) / 1e9), world)
    samples = cached(source(of=Tallied), folder)
    for split, size in SIZES.items():
        for index in world.deal(range(size)):
            samples.read(split, index)
    world.gather(None)  # all have written theirs
    return read_all(samples), shares, sum(len(samples.cached_bytes(split)) for split in SIZES)


def test_the_processes_of_a_machine_have_one_copy_and_decode_each_sample_once(root, expected):
    assert together.run(read_together, root) == 2 * [(expected, True, ALL)]
    assert (root / "tally").stat().st_size == ALL


def test_each_machine_has_a_copy(root, expected):
    assert together.run(read_together, root, 2) == 2 * [(expected, True, ALL)]
    assert (root / "tally").stat().st_size == 2 * ALL


def test_a_process_that_cannot_open_the_copy_has_its_own_in_its_part_of_the_room(root, expected):
    assert together.run(read_together, root, 1, False) == [(expected, False, ALL), (expected, False, ALL // 2)]
    assert (root / "tally").stat().st_size >= 2 * ALL


def test_a_process_alone_and_a_cache_on_disk_have_nothing_to_share(root):
    assert share(source(), SOLO)
    assert share(source("disk"), World(0, 2))
    assert module._memory == {}


# budget


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("fits", [0, 1, 8, ALL, 10**6])
def test_samples_beyond_the_budget_are_read_again_training_samples_last(cache, fits, expected, root):
    samples = cached(source(cache, cache_gb=(fits + 0.5) * file_bytes(1, RECORD) / 1e9), root)
    for _ in range(2):
        assert read_all(samples) == expected
    there = min(fits, ALL)
    assert Counted.drawn.value == 2 * ALL - there
    Counted.drawn.value = 0
    for index in range(SIZES["train"]):
        samples.read("train", index)
    assert Counted.drawn.value == max(0, SIZES["train"] - fits)
    assert sum(path.stat().st_size for path in root.rglob("*.records")) <= (fits + 0.5) * file_bytes(1, RECORD)


def test_at_most_half_of_the_free_memory_is_used(monkeypatch, root, expected):
    free = 2 * 3 * file_bytes(1, RECORD)
    monkeypatch.setattr(module, "free_memory", lambda: free)
    samples = cached(source(), root)
    for _ in range(2):
        assert read_all(samples) == expected
    assert Counted.drawn.value == 2 * ALL - 3


def test_pictures_added_to_a_full_cache_get_what_is_left(root):
    """Also in a later run of the process, which has the others cached already."""
    room = (ALL + 2.5) * file_bytes(1, RECORD) / 1e9
    read_all(cached(source(cache_gb=room), root))
    samples = cached(source(cache_gb=room, unlabelled=5), root)
    assert [len(samples.cached_bytes(split)) for split in (*SIZES, "unlabelled")] == [*SIZES.values(), 2]
    assert set(samples.cached_bytes("train")) == {RECORD}
    read_all(samples)
    assert Counted.drawn.value == ALL


# damage, and disks that are full


def records(root):
    return next(root.rglob("train.records"))


def flip(path):
    place = FileRecords(path)._offset(4)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def put_pipe(path):
    path.unlink()
    os.mkfifo(path)


def put_other_records(path, count, size):
    path.unlink()
    module.create(path, count, size)


DAMAGE = {
    "a flipped byte": (flip, 1),
    "cut": (lambda path: os.truncate(path, 5000), 7),
    "garbage": (lambda path: path.write_bytes(b"garbage"), 7),
    "no counts": (lambda path: path.write_bytes(b"{}".ljust(4096)), 7),
    "other records": (lambda path: put_other_records(path, 7, RECORD + 1), 7),
    "too many": (lambda path: put_other_records(path, 8, RECORD), 7),
    "a pipe": (put_pipe, 7),
}


@pytest.mark.parametrize(("damage", "lost"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_samples_are_read_again_and_repaired(damage, lost, expected, root):
    read_all(cached(source("disk"), root))
    damage(records(root))
    for drawn in (lost, 0):
        Counted.drawn.value = 0
        assert read_all(cached(source("disk"), root)) == expected
        assert Counted.drawn.value == drawn


def test_without_a_usable_cache_folder_samples_are_not_cached(root, expected, caplog):
    (root / "file").write_text("no folder")
    assert read_all(cached(source("disk"), root / "file" / "data")) == expected
    assert "data.cache=disk: " in caplog.text
    assert "samples are not cached" in caplog.text


def test_without_memory_samples_are_not_cached(root, expected, monkeypatch, caplog):
    def refuse(count, size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module, "MemoryRecords", refuse)
    assert read_all(cached(source(), root)) == expected
    assert "data.cache=ram: [Errno 12] Cannot allocate memory" in caplog.text


def on_a_full_disk(samples, expected, limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for _ in range(2):
        assert read_all(samples) == expected


def test_a_full_disk_disables_the_cache_and_not_the_run(root, expected):
    samples = cached(source("disk"), root)
    process = FORK.Process(target=on_a_full_disk, args=(samples, expected, 4096 + 8 * 7 + 3 * RECORD + 9))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    assert read_all(cached(source("disk"), root)) == expected
    assert FileRecords(records(root)).damaged() == []


def test_deleted_open_caches_are_still_read(root, expected):
    samples = cached(source("disk"), root)
    read_all(samples)
    for path in root.rglob("*.records"):
        path.unlink()
    assert read_all(samples) == expected
    assert Counted.drawn.value == ALL


def test_a_cache_folder_records_its_content_and_last_use(root):
    cached(source("disk"), root)
    (facts,) = root.rglob("facts.json")
    os.utime(facts, (0, 0))
    cached(source("disk"), root)
    assert facts.stat().st_mtime > 0
    assert '"train": 7' in facts.read_text()


def test_every_file_on_the_disk_is_listed_and_deleted_with_its_entry(tmp_path):
    cached(source("disk", unlabelled=5), tmp_path / "data")
    found = entries(tmp_path)
    names = {path.name for entry in found for path in entry.record_files}
    assert names == {"train.records", "val.records", "test.records", "unlabelled.records"}
    for entry in found:
        entry.delete()
    assert list((tmp_path / "data").iterdir()) == []
