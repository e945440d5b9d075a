"""Records in memory are pickled by their address: opened by the processes that may, and lost in the others."""

import os
import pickle

import pytest

from kd.system import shared_memory
from kd.system.memory_records import LostRecords, MemoryRecords, UnequalRecords

SIZES = [3, 0, 9, 4]


def make(kind):
    return UnequalRecords(SIZES) if kind == "unequal" else MemoryRecords(4, 9)


def content(records, index):
    return bytes([index + 1]) * records.size_of(index)


def read(records, index):
    target = bytearray(records.size_of(index))
    return bytes(target) if records.read_into(index, memoryview(target)) else None


@pytest.fixture(params=["equal", "unequal"])
def records(request):
    return make(request.param)


def test_records_of_any_sizes_are_read_as_they_were_written(records):
    for index in reversed(range(4)):
        records.write(index, memoryview(content(records, index)))
    assert [read(records, index) for index in range(4)] == [content(records, index) for index in range(4)]


def test_unpickled_records_are_the_same_memory(records):
    """On both sides, and those unpickled of unpickled ones."""
    other = pickle.loads(pickle.dumps(records))
    third = pickle.loads(pickle.dumps(other))
    assert type(other) is type(records)
    assert records.for_any_process
    for index, writer in enumerate((records, other, third)):
        writer.write(index, memoryview(content(records, index)))
    for reader in (records, other, third):
        assert [read(reader, index) for index in range(4)] == [*(content(records, index) for index in range(3)), None]


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("why", ["no address", "not to be opened", "the owner has closed it"])
def test_records_that_cannot_be_opened_are_lost_and_not_an_error(kind, why, monkeypatch, tmp_path):
    if why == "no address":
        monkeypatch.delattr(os, "memfd_create")
    records = make(kind)
    assert records.for_any_process == (why != "no address")
    pickled = pickle.dumps(records)
    if why == "not to be opened":
        monkeypatch.setattr(shared_memory, "PROCESSES", tmp_path)
    if why == "the owner has closed it":
        del records
    lost = pickle.loads(pickled)
    assert isinstance(lost, LostRecords)
    assert lost.count == 0
    assert not lost.write(0, memoryview(bytes(9)))
    assert not lost.read_into(0, memoryview(bytearray(9)))
