"""The cores and the memory that this process may use: of its affinity and its cgroup, not of the whole machine.

Slurm gives a job cores by affinity and memory by cgroup; Docker and Kubernetes give both by cgroup.

Reference: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max, memory.stat)
"""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")

#: Set for the trials of a study that run at once on one machine: how many there are.
TRIALS_AT_ONCE = "KD_SLOTS"
SLOT = "KD_SLOT"  # numbers those of one study, from 0


def cores() -> int:
    """The cores that this process may use, at least 1."""
    given = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        given = len(os.sched_getaffinity(0))
    return max(1, int(min([given, *_quotas()])))


def free_memory() -> int:
    """The bytes that this process may still allocate: free on the machine, and below the limits of its cgroup."""
    import psutil  # POSIX only in part; nothing that must start quickly asks for memory

    return max(0, min([psutil.virtual_memory().available, *_rooms()]))


def trials_at_once() -> int:
    """How many trials of a study share this machine, as far as their sweeper knows."""
    given = os.environ.get(TRIALS_AT_ONCE, "")
    return max(1, int(given)) if given.isdecimal() else 1


def slot() -> int:
    """Which of the trials that share this machine this process runs; 0 outside a study."""
    given = os.environ.get(SLOT, "")
    return int(given) if given.isdecimal() else 0


def _quotas() -> Iterator[float]:
    """The cores that each cgroup above this process grants."""
    for folder in _folders("cpu"):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):  # else max, or -1
            yield int(words[0]) / int(words[1])


def _rooms() -> Iterator[int]:
    """The bytes that each cgroup above this process has left; what it holds of files can be dropped."""
    for folder in _folders("memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        facts = _words(folder / "memory.stat")
        values = dict(zip(facts[::2], facts[1::2], strict=False))
        files = values.get("total_inactive_file", values.get("inactive_file", "0"))
        if limit and used and all(word.isdecimal() for word in (limit[0], used[0], files)):  # else max
            yield int(limit[0]) - int(used[0]) + int(files)


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups for a controller, the innermost first; in a container only the root."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controllers if controllers else GROUPS  # version 1 has a tree for each controller
        inner = root / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []
