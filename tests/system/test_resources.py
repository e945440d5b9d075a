"""A process counts the cores and the memory that it was given, not those of the machine."""

import os

import psutil
import pytest

from kd.system import resources

GB = 10**9


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Writes files of this process's cgroup /job/step: `group("cpu.max", "150000 100000")`."""
    monkeypatch.setattr(resources, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")

    def write(name, text, where="job/step"):
        folder = tmp_path / "cgroup" / where
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    write.own = own
    return write


def test_without_limits_the_cores_are_those_of_the_affinity(group):
    assert resources.cores() == 64
    group("cpu.max", "max 100000\n")
    assert resources.cores() == 64


def test_one_core_saidof_many_is_one_core(monkeypatch, group):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert resources.cores() == 1


def test_a_quota_of_any_group_above_is_kept(group):
    group("cpu.max", "800000 100000")
    assert resources.cores() == 8
    group("cpu.max", "250000 100000", where="job")
    assert resources.cores() == 2
    group("cpu.max", "50000 100000")
    assert resources.cores() == 1


def test_quotas_of_cgroups_version_1_are_kept(group):
    group.own.write_text("5:memory:/job\n4:cpu,cpuacct:/job\n")
    group("cpu.cfs_quota_us", "400000", where="cpu,cpuacct/job")
    group("cpu.cfs_period_us", "100000", where="cpu,cpuacct/job")
    assert resources.cores() == 4
    group("cpu.cfs_quota_us", "-1", where="cpu,cpuacct/job")
    assert resources.cores() == 64


def test_memory_is_what_the_group_has_left_and_cached_files_count_as_free(group, monkeypatch):
    plenty = psutil.virtual_memory()._replace(available=100 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: plenty)
    assert resources.free_memory() == 100 * GB
    group("memory.max", str(8 * GB))
    group("memory.current", str(5 * GB))
    group("memory.stat", f"anon {3 * GB}\ninactive_file {2 * GB}\n")
    assert resources.free_memory() == 5 * GB
    group("memory.max", "max")
    assert resources.free_memory() == 100 * GB


def test_memory_of_cgroups_version_1_is_kept(group):
    group.own.write_text("5:memory:/job\n")
    group("memory.limit_in_bytes", "2000", where="memory/job")
    group("memory.usage_in_bytes", "500", where="memory/job")
    group("memory.stat", "inactive_file 1\ntotal_inactive_file 100", where="memory/job")
    assert resources.free_memory() == 1600


def test_without_cgroups_the_machine_is_the_limit(group):
    group.own.unlink()
    assert resources.cores() == 64
    assert resources.free_memory() > 0


@pytest.mark.parametrize(("said", "trials"), [(None, 1), ("4", 4), ("0", 1), ("many", 1)])
def test_the_trials_at_once_are_as_many_as_the_sweeper_says(said, trials, monkeypatch):
    monkeypatch.delenv(resources.TRIALS_AT_ONCE, raising=False)
    if said is not None:
        monkeypatch.setenv(resources.TRIALS_AT_ONCE, said)
    assert resources.trials_at_once() == trials


@pytest.mark.parametrize(("said", "slot"), [(None, 0), ("3", 3), ("", 0), ("-1", 0), ("many", 0)])
def test_a_slot_that_is_no_number_is_the_first(said, slot, monkeypatch):
    monkeypatch.delenv(resources.SLOT, raising=False)
    if said is not None:
        monkeypatch.setenv(resources.SLOT, said)
    assert resources.slot() == slot
