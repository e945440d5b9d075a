"""A record is whole or not there: whoever writes, is killed, meddles, forks, or comes at the same time."""

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

from kd.system.record_file import FORMAT, HEADER, FileRecords, MemoryRecords, Records, create, file_bytes

FORK = multiprocessing.get_context("fork")
COUNT, SIZE = 5, 24


def record(slot: int, size: int = SIZE) -> bytes:
    """What belongs into a slot."""
    return np.random.default_rng(slot).bytes(size)


def read(slots: Records, slot: int) -> bytes | None:
    target = bytearray(slots.size)
    return bytes(target) if slots.read_into(slot, memoryview(target)) else None


def of_file(path: Path, count: int = COUNT, size: int = SIZE) -> FileRecords:
    create(path, count, size)
    return FileRecords(path)


def full(path: Path, count: int = COUNT, size: int = SIZE) -> FileRecords:
    slots = of_file(path, count, size)
    for slot in range(count):
        slots.write(slot, memoryview(record(slot, size)))
    return slots


@pytest.fixture(params=["file", "memory"])
def slots(request, tmp_path):
    return of_file(tmp_path / "s.slots") if request.param == "file" else MemoryRecords(COUNT, SIZE)


# what is read


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, COUNT - 1), st.binary(min_size=SIZE, max_size=SIZE)))
def test_what_was_written_is_read_and_nothing_else(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("slots") / "s.slots"
    for slots in (of_file(path), MemoryRecords(COUNT, SIZE)):
        for slot, data in written.items():
            assert slots.write(slot, memoryview(data))
        assert {slot: read(slots, slot) for slot in range(COUNT)} == dict.fromkeys(range(COUNT)) | written
        assert set(np.flatnonzero(slots.filled())) == set(written)
        assert slots.damaged() == []
    again = FileRecords(path, writable=False)
    assert {slot: read(again, slot) for slot in written} == written
    shutil.rmtree(path.parent)


def test_the_last_of_several_records_counts(slots):
    for value in (b"a", b"b", b"c"):
        slots.write(1, memoryview(value * SIZE))
    assert read(slots, 1) == b"c" * SIZE


def test_an_emptied_slot_is_not_read_and_can_be_written_again(slots):
    for slot in (0, 1):
        slots.write(slot, memoryview(record(slot)))
    slots.empty(0)
    assert (read(slots, 0), read(slots, 1)) == (None, record(1))
    slots.write(0, memoryview(record(0)))
    assert read(slots, 0) == record(0)


def test_there_is_nothing_beyond_the_last_slot(slots):
    assert not slots.write(COUNT, memoryview(record(0)))
    assert read(slots, COUNT) is None


def test_a_record_of_another_length_is_refused(slots):
    with pytest.raises(ValueError, match=f"a record here has {SIZE} bytes, and not {SIZE - 1}"):
        slots.write(0, memoryview(bytes(SIZE - 1)))
    assert not slots.filled().any()


def test_a_file_is_as_long_as_promised_and_takes_the_room_of_what_was_written(tmp_path):
    size = 2**20
    slots = of_file(tmp_path / "s.slots", 64, size)
    slots.write(3, memoryview(bytes(size)))
    state = slots.path.stat()
    assert state.st_size == file_bytes(64, size)
    assert state.st_blocks * 512 < 3 * size


def test_making_a_file_again_changes_nothing(tmp_path):
    slots = full(tmp_path / "s.slots")
    create(slots.path, COUNT + 1, SIZE)
    assert read(FileRecords(slots.path), 2) == record(2)
    assert [path.name for path in tmp_path.iterdir()] == ["s.slots"]


# damage


@settings(max_examples=200, deadline=None)
@given(place=st.one_of(st.integers(0, 80), st.integers(HEADER - 40, file_bytes(COUNT, SIZE) - 1)),
       mask=st.integers(1, 255))  # fmt: skip
@example(place=23, mask=1)  # another number of slots
def test_a_flipped_byte_is_never_read_as_a_record(damaged_copy, place, mask):
    """Header, checksums, records: a file is refused, or one slot is empty or damaged, and the others are whole."""
    path = damaged_copy(place, mask)
    if place < HEADER:
        with pytest.raises(ValueError, match=r"is not a file of slots|has .* bytes where its header promises"):
            FileRecords(path)
        return
    slots = FileRecords(path)
    hit = (place - HEADER) // 8 if place < HEADER + 8 * COUNT else (place - HEADER - 8 * COUNT) // SIZE
    assert [read(slots, slot) for slot in range(COUNT)] == [
        None if slot == hit else record(slot) for slot in range(COUNT)
    ]
    assert slots.damaged() == [hit]


@pytest.fixture(scope="module")
def damaged_copy(tmp_path_factory):
    """A full file with one byte changed."""
    path = tmp_path_factory.mktemp("damage") / "s.slots"
    whole = full(path).path.read_bytes()

    def damage(place, mask):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        return path

    return damage


def test_a_record_that_was_moved_to_another_slot_is_not_read(tmp_path):
    slots = full(tmp_path / "s.slots")
    content = bytearray(slots.path.read_bytes())
    records = HEADER + 8 * COUNT
    content[HEADER + 8 : HEADER + 16] = content[HEADER : HEADER + 8]
    content[records + SIZE : records + 2 * SIZE] = content[records : records + SIZE]
    slots.path.write_bytes(content)
    assert read(FileRecords(slots.path), 1) is None
    assert read(FileRecords(slots.path), 0) == record(0)


GARBAGE = {
    "empty": b"",
    "short": b'{"format": 1',
    "no JSON": os.urandom(HEADER),
    "too deep": b"[" * HEADER,
    "a list": b"[]".ljust(HEADER),
    "no counts": json.dumps({"format": FORMAT}).encode().ljust(HEADER),
    "another format": json.dumps({"format": FORMAT + 1, "slots": 0, "bytes": 8}).encode().ljust(HEADER),
    "negative": json.dumps({"format": FORMAT, "slots": -1, "bytes": -8}).encode().ljust(HEADER),
    "fractions": json.dumps({"format": FORMAT, "slots": 0.0, "bytes": 8.0}).encode().ljust(HEADER),
    "words": json.dumps({"format": FORMAT, "slots": "0", "bytes": "8"}).encode().ljust(HEADER),
    "more than there is": json.dumps({"format": FORMAT, "slots": 2**60, "bytes": 2**60}).encode().ljust(HEADER),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_file_of_slots_is_refused(content, tmp_path):
    (tmp_path / "s.slots").write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.slots"):
        FileRecords(tmp_path / "s.slots")


@pytest.mark.parametrize("length", [0, 1, HEADER - 1, HEADER, HEADER + 8, file_bytes(COUNT, SIZE) - 1, 10**5])
def test_a_file_that_was_cut_or_grew_is_refused(length, tmp_path):
    path = full(tmp_path / "s.slots").path
    os.truncate(path, length)
    with pytest.raises(ValueError, match=r"is not a file of slots|has .* bytes where its header promises"):
        FileRecords(path)


def test_a_file_that_is_cut_while_it_is_open_has_fewer_records(tmp_path):
    slots = full(tmp_path / "s.slots")
    os.truncate(slots.path, file_bytes(COUNT, SIZE) - 1)
    assert [read(slots, slot) is not None for slot in range(COUNT)] == [True] * (COUNT - 1) + [False]


@pytest.mark.parametrize("writable", [True, False])
def test_a_pipe_is_refused_without_waiting(writable, tmp_path):
    os.mkfifo(tmp_path / "s.slots")
    with pytest.raises((ValueError, OSError)):
        FileRecords(tmp_path / "s.slots", writable)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        FileRecords(tmp_path)
    with pytest.raises(FileNotFoundError):
        FileRecords(tmp_path / "s.slots")


def test_a_file_that_is_deleted_while_it_is_open_can_be_used_on(tmp_path):
    slots = full(tmp_path / "s.slots")
    slots.path.unlink()
    slots.empty(0)
    assert slots.write(0, memoryview(record(0)))
    assert [read(slots, slot) for slot in range(COUNT)] == [record(slot) for slot in range(COUNT)]


def test_a_disk_that_fails_to_read_has_no_record(tmp_path):
    """A file that is open for writing only: the system refuses to read it."""
    slots = full(tmp_path / "s.slots")
    slots._file = FileIO(slots.path, "a")
    assert read(slots, 0) is None


# writers that die


class Dying(FileRecords):
    """Stops in the middle of a write, after so many bytes."""

    left = 0

    def _store(self, offset, data):
        part = data[: self.left]
        self.left -= len(part)
        super()._store(offset, part)


@pytest.mark.parametrize("before", [None, b"x" * SIZE])
def test_a_write_that_stops_anywhere_leaves_a_whole_record_or_none(before, tmp_path):
    for stop in range(SIZE + 8 + 1):
        slots = of_file(tmp_path / f"{stop}.slots")
        if before:
            slots.write(2, memoryview(before))
        dying = Dying(slots.path)
        dying.left = stop
        dying.write(2, memoryview(record(2)))
        assert read(FileRecords(slots.path), 2) in ({before, None} if stop < SIZE + 8 else {record(2)})


def write_until_killed(path, count, size, seed):
    slots, slot = FileRecords(path), random.Random(seed)
    while True:
        chosen = slot.randrange(count)
        slots.write(chosen, memoryview(record(chosen, size)))


def test_a_writer_that_is_killed_at_any_moment_leaves_whole_records_or_none(tmp_path):
    count, size, whole, absent = 40, 2**17, 0, 0
    for attempt in range(12):
        slots = of_file(tmp_path / f"{attempt}.slots", count, size)
        writer = FORK.Process(target=write_until_killed, args=(slots.path, count, size, attempt))
        writer.start()
        while not slots.filled().any():
            time.sleep(0.001)
        time.sleep(random.Random(attempt).uniform(0, 0.01))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        for slot in range(count):
            found = read(slots, slot)
            assert found in (None, record(slot, size))
            whole, absent = whole + (found is not None), absent + (found is None)
        slots.path.unlink()
    assert whole > 0
    assert absent > 0


# several at once


def use(slots, seed):
    """Write and read at random; ends with 1 where something was read that does not belong there."""
    chance, reads = random.Random(seed), 0
    for _ in range(400):
        slot = chance.randrange(COUNT)
        if chance.random() < 0.5:
            slots.write(slot, memoryview(record(slot, slots.size)))
        else:
            found = read(slots, slot)
            assert found in (None, record(slot, slots.size))
            reads += found is not None
    assert reads > 0


def meddle(slots, seed):
    chance = random.Random(seed)
    with slots.path.open("r+b", buffering=0) as file:
        for _ in range(400):
            file.seek(chance.randrange(HEADER, file_bytes(COUNT, slots.size)))
            file.write(bytes([chance.randrange(256)]))


def together(*tasks) -> None:
    processes = [FORK.Process(target=task, args=arguments) for task, *arguments in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_processes_that_write_and_read_at_once_read_only_what_belongs_there(kind, tmp_path):
    slots = of_file(tmp_path / "s.slots", size=2**14) if kind == "file" else MemoryRecords(COUNT, 2**14)
    together(*((use, slots, seed) for seed in range(4)))
    assert [read(slots, slot) for slot in range(COUNT)] == [record(slot, 2**14) for slot in range(COUNT)]


def test_processes_read_only_what_belongs_there_while_somebody_meddles_with_the_file(tmp_path):
    slots = of_file(tmp_path / "s.slots", size=2**10)
    together((use, slots, 0), (use, slots, 1), (meddle, slots, 2))
    assert all(read(slots, slot) in (None, record(slot, 2**10)) for slot in range(COUNT))


def read_all(slots, times):
    for _ in range(times):
        assert [read(slots, slot) for slot in range(COUNT)] == [record(slot, slots.size) for slot in range(COUNT)]


def test_forked_processes_do_not_disturb_each_others_place_in_the_file(tmp_path):
    slots = full(tmp_path / "s.slots", size=2**12)
    read_all(slots, 1)  # it is open before the fork
    together(*((read_all, slots, 200) for _ in range(3)))


def test_a_process_may_be_forked_while_a_thread_reads(tmp_path):
    """A lock that the thread holds at that moment would stay locked in the child for ever."""
    slots, over = full(tmp_path / "s.slots", size=2**20), threading.Event()

    def keep_reading():
        while not over.is_set():
            read_all(slots, 1)

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        for _ in range(6):
            together((read_all, slots, 1))
    finally:
        over.set()
        thread.join()


def fill(slots):
    for slot in range(COUNT):
        slots.write(slot, memoryview(record(slot)))


def test_memory_is_shared_with_processes_that_are_forked_later(tmp_path):
    slots = MemoryRecords(COUNT, SIZE)
    together((fill, slots))
    read_all(slots, 1)
    together((read_all, slots, 1))


def fill_and_say(slots, memory):
    fill(slots)
    assert not memory.write(0, memoryview(record(0)))
    assert read(memory, 0) is None


def test_a_spawned_process_shares_the_file_and_has_no_memory(tmp_path):
    slots = of_file(tmp_path / "s.slots")
    memory = MemoryRecords(COUNT, SIZE)
    memory.write(0, memoryview(record(0)))
    process = multiprocessing.get_context("spawn").Process(target=fill_and_say, args=(slots, memory))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    read_all(slots, 1)


def test_a_file_for_reading_only_stays_so_when_it_is_handed_on(tmp_path):
    path = full(tmp_path / "s.slots").path
    again = FileRecords.__reduce__(FileRecords(path, writable=False))
    slots = again[0](*again[1])
    assert read(slots, 0) == record(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        slots.write(0, memoryview(record(0)))
