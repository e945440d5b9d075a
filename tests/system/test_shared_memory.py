"""Memory is shared with the processes that may open it, and ends with the last one that has it open."""

import multiprocessing
import os
import resource
import signal
from dataclasses import replace

import pytest

from kd.system import shared_memory
from kd.system.shared_memory import SharedMemory

FORK = multiprocessing.get_context("fork")
LENGTH = 10_000


def read(memory, offset, length):
    target = bytearray(length)
    return bytes(target) if memory.read(offset, memoryview(target)) else None


@pytest.fixture(params=["file", "map"])
def memory(request, monkeypatch):
    if request.param == "map":
        monkeypatch.delattr(os, "memfd_create")
    return SharedMemory(LENGTH)


def test_bytes_are_zero_until_they_are_written(memory):
    memory.write(5, memoryview(b"abc"))
    assert read(memory, 0, LENGTH) == bytes(5) + b"abc" + bytes(LENGTH - 8)
    memory.write(LENGTH - 1, memoryview(b"z"))
    assert read(memory, LENGTH - 1, 1) == b"z"


def test_a_forked_process_shares_it(memory):
    child = FORK.Process(target=memory.write, args=(7, memoryview(b"from the child")))
    child.start()
    child.join(600)
    assert read(memory, 7, 14) == b"from the child"


def test_only_a_file_has_an_address(memory):
    assert (memory.address is None) == (not hasattr(os, "memfd_create"))


def test_both_sides_of_an_address_see_what_the_other_writes():
    memory = SharedMemory(LENGTH)
    other = SharedMemory.at(memory.address)
    memory.write(1, memoryview(b"a"))
    other.write(2, memoryview(b"b"))
    assert read(memory, 0, 4) == read(other, 0, 4) == b"\0ab\0"


def test_only_what_is_written_takes_memory():
    memory = SharedMemory(2**40)
    memory.write(2**39, memoryview(b"a"))
    assert os.stat(memory.address.file).st_blocks * 512 <= 2**22  # two pages, which may be huge ones


def own_until_killed(end):
    memory = SharedMemory(LENGTH)
    memory.write(0, memoryview(b"still here"))
    end.send(memory.address)
    signal.pause()


def test_a_killed_owner_leaves_nothing_but_what_others_have_open():
    mine, theirs = FORK.Pipe()
    owner = FORK.Process(target=own_until_killed, args=(theirs,))
    owner.start()
    address = mine.recv()
    memory = SharedMemory.at(address)
    owner.kill()
    owner.join(600)
    assert owner.exitcode == -signal.SIGKILL
    assert read(memory, 0, 10) == b"still here"
    assert os.stat(memory.address.file).st_nlink == 0  # no folder has it
    with pytest.raises(FileNotFoundError):
        SharedMemory.at(address)
    assert read(SharedMemory.at(memory.address), 0, 10) == b"still here"


def test_whatever_else_is_found_at_an_address_is_refused(tmp_path):
    memory, other = SharedMemory(LENGTH), SharedMemory(LENGTH)
    pipe = os.pipe()
    (tmp_path / "short").write_bytes(b"short")
    with (tmp_path / "short").open("r+b") as file:
        for number in (other.address.file, *pipe, file.fileno(), 10**6):
            with pytest.raises(FileNotFoundError):
                SharedMemory.at(replace(memory.address, file=number))
    for end in pipe:
        os.close(end)


def test_without_other_processes_folders_nothing_is_opened(monkeypatch, tmp_path):
    memory = SharedMemory(LENGTH)
    monkeypatch.setattr(shared_memory, "PROCESSES", tmp_path)
    with pytest.raises(FileNotFoundError):
        SharedMemory.at(memory.address)


def address_under_a_limit(end, bytes_of_a_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, bytes_of_a_file))
    memory = SharedMemory(LENGTH)
    memory.write(0, memoryview(b"a"))
    end.send((memory.address, read(memory, 0, 1)))


def test_where_files_may_not_be_as_long_only_forked_processes_share_it():
    mine, theirs = FORK.Pipe()
    process = FORK.Process(target=address_under_a_limit, args=(theirs, LENGTH))
    process.start()
    assert mine.recv() == (None, b"a")
    process.join(600)
