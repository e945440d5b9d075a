"""Logits are cached as computed, within a budget; any failure costs cached logits but never the run."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from kd.distillation import logit_cache as module
from kd.distillation.logit_cache import LogitCache, reserved
from kd.system.record_file import HEADER, FileRecords, create, file_bytes

SAMPLES, SHAPE = 6, (2, 4, 4)
RECORD = 2 * 2 * 4 * 4  # bytes
VIEW = file_bytes(SAMPLES, RECORD)
LARGEST = 65504.0  # of half precision
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _no_spare(monkeypatch):
    """Only the budget matters here, however full the disk of these tests is."""
    monkeypatch.setattr(module, "SPARE", 0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "teacher" / "abc"


def answer(view: int, indices: list[int]) -> torch.Tensor:
    """The teacher's logits for a view of some samples."""
    rows = [torch.from_numpy(np.random.default_rng([view, index]).normal(size=SHAPE)) for index in indices]
    return torch.stack(rows).half()


def store(to: LogitCache, view: int, *indices: int) -> None:
    to.write(view, list(indices), answer(view, list(indices)))


def known(of: LogitCache, view: int) -> list[int]:
    """The samples whose logits can be read, after checking that they are right."""
    found = [index for index in range(SAMPLES) if of.read(view, [index]) is not None]
    assert all(torch.equal(of.read(view, [index]), answer(view, [index])) for index in found)
    return found


def files(under: Path) -> dict[Path, tuple[bytes, int]]:
    """All files below a folder: content and modification time."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in under.rglob("*") if path.is_file()}


# what is read


def test_stored_logits_are_read_in_any_batch(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    store(of, 3, 4, 0, 2)
    for batch in ([4, 0, 2], [2, 4], [0]):
        assert torch.equal(LogitCache(folder, SAMPLES, SHAPE).read(3, batch), answer(3, batch))
    assert of.refused == 0


def test_a_batch_is_read_only_if_all_of_it_is_stored(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    store(of, 0, 1, 2)
    assert of.read(0, [1, 3]) is None
    assert of.read(1, [1]) is None
    assert of.read(0, [SAMPLES]) is None


def test_views_are_kept_apart_and_many_can_be_open(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    for view in range(12):
        store(of, view, *range(SAMPLES))
    for view in (0, 11, 3, 4, 3):
        assert known(of, view) == list(range(SAMPLES))
    assert len(of._views) <= 3


def test_logits_in_another_memory_layout_are_stored_by_value(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    batch = answer(0, [0, 1]).contiguous(memory_format=torch.channels_last)
    of.write(0, [0, 1], batch)
    assert torch.equal(of.read(0, [0, 1]), batch)


def test_nan_and_infinity_are_stored(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    batch = answer(0, [0])
    batch[0, 0, 0] = float("nan")
    of.write(0, [0], batch)
    assert torch.equal(of.read(0, [0]).view(torch.int16), batch.view(torch.int16))


def test_records_of_any_shape_and_type_are_stored_in_as_many_bytes(folder):
    of = LogitCache(folder, SAMPLES, (3, 8 + 5), dtype=torch.uint8)
    batch = torch.arange(2 * 3 * 13).view(2, 3, 13).byte()
    of.write(0, [4, 1], batch)
    assert of.record_bytes == 3 * 13
    assert (folder / "view-000000.records").stat().st_size == file_bytes(SAMPLES, 3 * 13)
    found = of.read(0, [1, 4])
    assert found.dtype == torch.uint8
    assert torch.equal(found, batch.flip(0))


def test_a_pickled_cache_reads_the_same_logits(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    store(of, 0, 0, 1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(pool.apply(of.read, (0, [1, 0])), answer(0, [1, 0]))


# the budget


def use_views(folder: Path, name: str, budget: int, seed: int) -> None:
    of = LogitCache(folder / name, SAMPLES, SHAPE, budget=budget)
    for view in np.random.default_rng(seed).permutation(5).tolist():
        store(of, view, *range(SAMPLES))
        assert reserved(folder) <= budget


@pytest.mark.parametrize("budget", [0, HEADER, VIEW - 1, VIEW, 2 * VIEW + VIEW // 2, 10 * VIEW])
def test_teachers_never_exceed_their_common_budget(budget, tmp_path):
    """Two processes of one teacher and one of another, concurrently."""
    processes = [FORK.Process(target=use_views, args=(tmp_path / "t", *job)) for job in
                 (("a", budget, 0), ("a", budget, 1), ("b", budget, 2))]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert reserved(tmp_path / "t") <= budget
    assert budget - reserved(tmp_path / "t") < VIEW or reserved(tmp_path / "t") == 10 * VIEW


def test_a_view_is_stored_completely_or_not_at_all(folder):
    of = LogitCache(folder, SAMPLES, SHAPE, budget=2 * VIEW - 1)
    assert of.fit(1) == of.fit(3) == 1
    for view in range(3):
        store(of, view, *range(SAMPLES))
    assert [known(of, view) for view in range(3)] == [list(range(SAMPLES)), [], []]
    assert of.refused == 2 * SAMPLES
    assert of.fit(1) == of.fit(3) == 1


def test_freed_space_is_used_by_the_next_run(folder):
    full = LogitCache(folder, SAMPLES, SHAPE, budget=0)
    store(full, 0, *range(SAMPLES))
    assert known(full, 0) == []
    store(LogitCache(folder, SAMPLES, SHAPE, budget=VIEW), 0, *range(SAMPLES))
    assert known(full, 0) == list(range(SAMPLES))


def test_other_files_do_not_count(tmp_path):
    create(tmp_path / "a" / "view-000000.records", 3, 8)
    (tmp_path / "a" / "facts.json").write_text("{}")
    (tmp_path / "b.records").mkdir()
    assert reserved(tmp_path) == file_bytes(3, 8)
    assert reserved(tmp_path / "missing") == 0


def test_some_disk_space_is_left_free(folder, monkeypatch):
    monkeypatch.setattr(module, "SPARE", 10**18)
    of = LogitCache(folder, SAMPLES, SHAPE)
    store(of, 0, 0)
    assert (of.room(), of.refused, of.fit(2)) == (0, 1, 0)
    assert not list(folder.rglob("*.records"))


# what is only read, and what cannot be written


def test_a_read_only_cache_is_not_changed(folder, tmp_path):
    store(LogitCache(folder, SAMPLES, SHAPE), 0, 0, 1)
    FileRecords(folder / "view-000000.records")._store(HEADER, memoryview(bytes([1])))
    (folder / "view-000001.records").write_bytes(b"garbage")
    before = files(tmp_path)
    of = LogitCache(folder, SAMPLES, SHAPE, writable=False)
    assert known(of, 0) == [1]
    for view in range(3):
        store(of, view, *range(SAMPLES))
    assert (known(of, 0), known(of, 1), known(of, 2)) == ([1], [], [])
    assert files(tmp_path) == before
    assert of.refused == 3 * SAMPLES


@pytest.mark.parametrize("damage", ["garbage", "cut", "other records", "too many", "pipe"])
def test_a_damaged_view_is_replaced(damage, folder, caplog):
    store(LogitCache(folder, SAMPLES, SHAPE), 0, *range(SAMPLES))
    path = folder / "view-000000.records"
    if damage == "cut":
        os.truncate(path, VIEW - 1)
    else:
        path.unlink()
        make = {
            "garbage": lambda: path.write_bytes(os.urandom(VIEW)),
            "other records": lambda: create(path, SAMPLES, RECORD + 1),
            "too many": lambda: create(path, SAMPLES + 1, RECORD),
            "pipe": lambda: os.mkfifo(path),
        }
        make[damage]()
    of = LogitCache(folder, SAMPLES, SHAPE)
    assert known(of, 0) == []
    assert caplog.text.count("its logits are computed again") == 1
    store(of, 0, *range(SAMPLES))
    assert known(of, 0) == list(range(SAMPLES))


def in_the_way(of: LogitCache) -> Path:
    """A folder in place of a view, which cannot be unlinked."""
    of._path(0).mkdir(parents=True)
    return of.folder


def no_folder(of: LogitCache) -> Path:
    of.folder.parent.parent.mkdir(parents=True, exist_ok=True)
    of.folder.parent.write_text("a file where the folder should be")
    return of.folder.parent


@pytest.mark.parametrize("obstacle", [in_the_way, no_folder])
def test_write_errors_do_not_stop_the_run(obstacle, folder, caplog):
    of = LogitCache(folder, SAMPLES, SHAPE)
    blocked = obstacle(of)
    for _ in range(3):
        assert known(of, 0) == []
        store(of, 0, 0)
    assert blocked.exists()
    assert of.refused == 3
    assert caplog.text.count("teacher.cache") in (1, 2)


def on_a_full_disk(of: LogitCache, limit: int, whole: list[int], refused: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for _ in range(2):
        store(of, 0, *range(SAMPLES))
    assert not of.writable
    assert of.refused == refused
    assert known(of, 0) == whole


@pytest.mark.parametrize(
    ("limit", "whole", "refused"),
    [(VIEW - 1, [], 2 * SAMPLES), (HEADER + 8 * SAMPLES + 2 * RECORD + 5, [0, 1], 4 + SAMPLES)],
)
def test_a_full_disk_disables_the_cache_and_not_the_run(limit, whole, refused, folder):
    """A file cannot be created, or, if it existed before the disk filled up, cannot be filled."""
    of = LogitCache(folder, SAMPLES, SHAPE)
    if whole:
        create(folder / "view-000000.records", SAMPLES, RECORD)
    process = FORK.Process(target=on_a_full_disk, args=(of, limit, whole, refused))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    assert known(of, 0) == whole


def test_deleted_logits_are_stored_again(folder):
    of = LogitCache(folder, SAMPLES, SHAPE)
    store(of, 0, 0)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    store(of, 0, 1)
    assert known(of, 0) == [0, 1]  # the file is open, and has no name any more
    store(of, 1, 1)
    again = LogitCache(folder, SAMPLES, SHAPE)
    assert (known(again, 0), known(again, 1)) == ([], [1])
    store(again, 0, 2)
    assert known(LogitCache(folder, SAMPLES, SHAPE), 0) == [2]
