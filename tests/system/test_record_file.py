"""A record reads as written or as missing, despite killed writers, damage, forks and races."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd.system.memory_records import MemoryRecords
from kd.system.record_file import FORMAT, HEADER, FileRecords, Records, create, file_bytes

FORK = multiprocessing.get_context("fork")
COUNT, SIZE = 5, 24


def record(index: int, size: int = SIZE) -> bytes:
    """The content of the record at an index."""
    return np.random.default_rng(index).bytes(size)


def read(records: Records, index: int) -> bytes | None:
    target = bytearray(records.size)
    return bytes(target) if records.read_into(index, memoryview(target)) else None


def of_file(path: Path, count: int = COUNT, size: int = SIZE) -> FileRecords:
    create(path, count, size)
    return FileRecords(path)


def full(path: Path, count: int = COUNT, size: int = SIZE) -> FileRecords:
    records = of_file(path, count, size)
    for index in range(count):
        records.write(index, memoryview(record(index, size)))
    return records


@pytest.fixture(params=["file", "memory", "map"])
def records(request, tmp_path, monkeypatch):
    if request.param == "map":  # memory without an address
        monkeypatch.delattr(os, "memfd_create")
    return of_file(tmp_path / "x.records") if request.param == "file" else MemoryRecords(COUNT, SIZE)


# reading


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, COUNT - 1), st.binary(min_size=SIZE, max_size=SIZE)))
def test_only_written_records_are_read(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("records") / "x.records"
    for records in (of_file(path), MemoryRecords(COUNT, SIZE)):
        for index, data in written.items():
            assert records.write(index, memoryview(data))
        assert {index: read(records, index) for index in range(COUNT)} == dict.fromkeys(range(COUNT)) | written
        assert set(np.flatnonzero(records.filled())) == set(written)
        assert records.damaged() == []
    again = FileRecords(path, writable=False)
    assert {index: read(again, index) for index in written} == written
    shutil.rmtree(path.parent)


def test_the_last_write_wins(records):
    for value in (b"a", b"b", b"c"):
        records.write(1, memoryview(value * SIZE))
    assert read(records, 1) == b"c" * SIZE


def test_an_erased_record_is_missing_and_can_be_written_again(records):
    for index in (0, 1):
        records.write(index, memoryview(record(index)))
    records.empty(0)
    assert (read(records, 0), read(records, 1)) == (None, record(1))
    records.write(0, memoryview(record(0)))
    assert read(records, 0) == record(0)


def test_an_index_out_of_range_is_missing(records):
    assert not records.write(COUNT, memoryview(record(0)))
    assert read(records, COUNT) is None


def test_a_record_of_another_length_is_refused(records):
    with pytest.raises(ValueError, match=f"a record must have {SIZE} bytes, but got {SIZE - 1}"):
        records.write(0, memoryview(bytes(SIZE - 1)))
    assert not records.filled().any()


def test_a_file_is_sparse(tmp_path):
    size = 2**20
    records = of_file(tmp_path / "x.records", 64, size)
    records.write(3, memoryview(bytes(size)))
    state = records.path.stat()
    assert state.st_size == file_bytes(64, size)
    assert state.st_blocks * 512 < 3 * size


def test_creating_an_existing_file_changes_nothing(tmp_path):
    records = full(tmp_path / "x.records")
    create(records.path, COUNT + 1, SIZE)
    assert read(FileRecords(records.path), 2) == record(2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.records"]


# damage


@settings(max_examples=200, deadline=None)
@given(place=st.one_of(st.integers(0, 80), st.integers(HEADER - 40, file_bytes(COUNT, SIZE) - 1)),
       mask=st.integers(1, 255))  # fmt: skip
@example(place=23, mask=1)  # another number of records
def test_a_flipped_byte_is_never_read_as_a_record(damaged_copy, place, mask):
    """A damaged header is refused; a damaged checksum or record loses that record only."""
    path = damaged_copy(place, mask)
    if place < HEADER:
        with pytest.raises(ValueError, match=r"is not a record file|has .* bytes, but its header says"):
            FileRecords(path)
        return
    records = FileRecords(path)
    hit = (place - HEADER) // 8 if place < HEADER + 8 * COUNT else (place - HEADER - 8 * COUNT) // SIZE
    assert [read(records, index) for index in range(COUNT)] == [
        None if index == hit else record(index) for index in range(COUNT)
    ]
    assert records.damaged() == [hit]


@pytest.fixture(scope="module")
def damaged_copy(tmp_path_factory):
    """A full file with one byte changed."""
    path = tmp_path_factory.mktemp("damage") / "x.records"
    whole = full(path).path.read_bytes()

    def damage(place, mask):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        return path

    return damage


def test_a_record_moved_to_another_index_is_not_read(tmp_path):
    records = full(tmp_path / "x.records")
    content = bytearray(records.path.read_bytes())
    start = HEADER + 8 * COUNT
    content[HEADER + 8 : HEADER + 16] = content[HEADER : HEADER + 8]
    content[start + SIZE : start + 2 * SIZE] = content[start : start + SIZE]
    records.path.write_bytes(content)
    assert read(FileRecords(records.path), 1) is None
    assert read(FileRecords(records.path), 0) == record(0)


GARBAGE = {
    "empty": b"",
    "short": b'{"format": 1',
    "no JSON": os.urandom(HEADER),
    "too deep": b"[" * HEADER,
    "a list": b"[]".ljust(HEADER),
    "no counts": json.dumps({"format": FORMAT}).encode().ljust(HEADER),
    "another format": json.dumps({"format": FORMAT + 1, "records": 0, "bytes": 8}).encode().ljust(HEADER),
    "negative": json.dumps({"format": FORMAT, "records": -1, "bytes": -8}).encode().ljust(HEADER),
    "fractions": json.dumps({"format": FORMAT, "records": 0.0, "bytes": 8.0}).encode().ljust(HEADER),
    "words": json.dumps({"format": FORMAT, "records": "0", "bytes": "8"}).encode().ljust(HEADER),
    "more than there is": json.dumps({"format": FORMAT, "records": 2**60, "bytes": 2**60}).encode().ljust(HEADER),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_another_kind_of_file_is_refused(content, tmp_path):
    (tmp_path / "x.records").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.records"):
        FileRecords(tmp_path / "x.records")


@pytest.mark.parametrize("length", [0, 1, HEADER - 1, HEADER, HEADER + 8, file_bytes(COUNT, SIZE) - 1, 10**5])
def test_a_file_of_the_wrong_length_is_refused(length, tmp_path):
    path = full(tmp_path / "x.records").path
    os.truncate(path, length)
    with pytest.raises(ValueError, match=r"is not a record file|has .* bytes, but its header says"):
        FileRecords(path)


def test_truncating_an_open_file_loses_only_its_end(tmp_path):
    records = full(tmp_path / "x.records")
    os.truncate(records.path, file_bytes(COUNT, SIZE) - 1)
    assert [read(records, index) is not None for index in range(COUNT)] == [True] * (COUNT - 1) + [False]


@pytest.mark.parametrize("writable", [True, False])
def test_a_pipe_is_refused_without_blocking(writable, tmp_path):
    os.mkfifo(tmp_path / "x.records")
    with pytest.raises((ValueError, OSError)):
        FileRecords(tmp_path / "x.records", writable)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        FileRecords(tmp_path)
    with pytest.raises(FileNotFoundError):
        FileRecords(tmp_path / "x.records")


def test_a_deleted_open_file_stays_usable(tmp_path):
    records = full(tmp_path / "x.records")
    records.path.unlink()
    records.empty(0)
    assert records.write(0, memoryview(record(0)))
    assert [read(records, index) for index in range(COUNT)] == [record(index) for index in range(COUNT)]


def test_a_read_error_is_a_missing_record(tmp_path):
    """Reading fails because the file is open for writing only."""
    records = full(tmp_path / "x.records")
    records._file = FileIO(records.path, "a")
    assert read(records, 0) is None


# killed writers


class Dying(FileRecords):
    """Stops writing after `left` bytes."""

    left = 0

    def _store(self, offset, data):
        part = data[: self.left]
        self.left -= len(part)
        super()._store(offset, part)


@pytest.mark.parametrize("before", [None, b"x" * SIZE])
def test_an_interrupted_write_leaves_a_whole_record_or_none(before, tmp_path):
    for stop in range(SIZE + 8 + 1):
        records = of_file(tmp_path / f"{stop}.records")
        if before:
            records.write(2, memoryview(before))
        dying = Dying(records.path)
        dying.left = stop
        dying.write(2, memoryview(record(2)))
        assert read(FileRecords(records.path), 2) in ({before, None} if stop < SIZE + 8 else {record(2)})


def write_until_killed(path, count, size, seed, permits):
    records, chance = FileRecords(path), random.Random(seed)
    while permits.acquire():
        chosen = chance.randrange(count)
        records.write(chosen, memoryview(record(chosen, size)))


def test_a_killed_writer_leaves_whole_records_or_none(tmp_path):
    count, size, whole, absent = 40, 2**17, 0, 0
    for attempt in range(12):
        records = of_file(tmp_path / f"{attempt}.records", count, size)
        permits = FORK.Semaphore(count - 1)  # too few to fill the file, however late the writer is killed
        writer = FORK.Process(target=write_until_killed, args=(records.path, count, size, attempt, permits))
        writer.start()
        while not records.filled().any():
            time.sleep(0.001)
        time.sleep(random.Random(attempt).uniform(0, 0.01))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        for index in range(count):
            found = read(records, index)
            assert found in (None, record(index, size))
            whole, absent = whole + (found is not None), absent + (found is None)
        records.path.unlink()
    assert whole > 0
    assert absent > 0


# concurrency


def use(records, seed):
    """Write and read at random; the process exits with 1 if a read returns anything else than was written."""
    chance, reads = random.Random(seed), 0
    for _ in range(400):
        index = chance.randrange(COUNT)
        if chance.random() < 0.5:
            records.write(index, memoryview(record(index, records.size)))
        else:
            found = read(records, index)
            assert found in (None, record(index, records.size))
            reads += found is not None
    assert reads > 0


def corrupt(records, seed):
    chance = random.Random(seed)
    with records.path.open("r+b", buffering=0) as file:
        for _ in range(400):
            file.seek(chance.randrange(HEADER, file_bytes(COUNT, records.size)))
            file.write(bytes([chance.randrange(256)]))


def together(*tasks) -> None:
    processes = [FORK.Process(target=task, args=arguments) for task, *arguments in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_concurrent_processes_read_only_what_was_written(kind, tmp_path):
    records = of_file(tmp_path / "x.records", size=2**14) if kind == "file" else MemoryRecords(COUNT, 2**14)
    together(*((use, records, seed) for seed in range(4)))
    assert [read(records, index) for index in range(COUNT)] == [record(index, 2**14) for index in range(COUNT)]


def test_corrupted_bytes_are_never_read_as_a_record(tmp_path):
    records = of_file(tmp_path / "x.records", size=2**10)
    together((use, records, 0), (use, records, 1), (corrupt, records, 2))
    assert all(read(records, index) in (None, record(index, 2**10)) for index in range(COUNT))


def read_all(records, times):
    for _ in range(times):
        assert [read(records, index) for index in range(COUNT)] == [
            record(index, records.size) for index in range(COUNT)
        ]


def test_forked_processes_share_no_file_position(tmp_path):
    records = full(tmp_path / "x.records", size=2**12)
    read_all(records, 1)  # opened before the fork
    together(*((read_all, records, 200) for _ in range(3)))


def test_a_fork_during_a_read_does_not_deadlock(tmp_path):
    """A lock held by the thread at that moment would stay locked in the child forever."""
    records, over = full(tmp_path / "x.records", size=2**20), threading.Event()

    def keep_reading():
        while not over.is_set():
            read_all(records, 1)

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        for _ in range(6):
            together((read_all, records, 1))
    finally:
        over.set()
        thread.join()


def fill(records):
    for index in range(COUNT):
        records.write(index, memoryview(record(index)))


def test_memory_is_shared_with_forked_processes(tmp_path):
    records = MemoryRecords(COUNT, SIZE)
    together((fill, records))
    read_all(records, 1)
    together((read_all, records, 1))


def check_one_and_fill(*shared):
    for records in shared:
        assert read(records, 0) == record(0)
        fill(records)


def test_a_spawned_process_reads_what_was_written_and_writes_what_is_read(tmp_path):
    shared = of_file(tmp_path / "x.records"), MemoryRecords(COUNT, SIZE)
    for records in shared:
        records.write(0, memoryview(record(0)))
    process = multiprocessing.get_context("spawn").Process(target=check_one_and_fill, args=shared)
    process.start()
    process.join(600)
    assert process.exitcode == 0
    for records in shared:
        read_all(records, 1)


def test_a_read_only_file_stays_read_only_when_pickled(tmp_path):
    path = full(tmp_path / "x.records").path
    again = FileRecords.__reduce__(FileRecords(path, writable=False))
    records = again[0](*again[1])
    assert read(records, 0) == record(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        records.write(0, memoryview(record(0)))
