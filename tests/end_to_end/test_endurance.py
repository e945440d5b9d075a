"""Long trainings and long studies in one process need no more memory, files and processes at their end."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import program
import psutil
import pytest
from waiting import until

TINY = [
    "backbone=tiny", "loss=hard_only", "data.image_size=[32,32]", "data.train=8", "data.val=4", "data.test=4",
    "trainer.batch_size=4", "trainer.device=cpu", "tracking=none", "pictures=false",
]  # fmt: skip
MORE = 1.1  # memory at the end over memory at the beginning; an allocator is never quite flat
MOMENTARY = (
    4  # files, threads or processes that may be open just then; a leak is one for each of 24 trials or 175 epochs
)


class Used(NamedTuple):
    """What a process uses: bytes of memory, open files, threads, and processes of its own."""

    memory: int
    files: int
    threads: int
    children: int


def used(process: program.Program, reached: Callable[[], bool], what: str) -> Used:
    until(reached, what, program.PATIENCE)
    found = psutil.Process(process.pid)
    return Used(found.memory_info().rss, found.num_fds(), found.num_threads(), len(found.children(recursive=True)))


def check(early: Used, late: Used) -> None:
    assert late.memory < MORE * early.memory
    assert all(now - before <= MOMENTARY for now, before in zip(late[1:], early[1:], strict=True))


def lines(root: Path, name: str) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in root.rglob(name))


@pytest.mark.slow
def test_an_epoch_leaves_nothing_behind(tmp_path):
    process = program.begin(tmp_path, *TINY, "unfreeze=all", "trainer.epochs=200")
    early = used(process, lambda: lines(tmp_path, "metrics.jsonl") >= 20, "epoch 20")
    late = used(process, lambda: lines(tmp_path, "metrics.jsonl") >= 195, "epoch 195")
    assert process.poll() is None
    check(early, late)
    process.kill()


@pytest.mark.slow
def test_a_trial_leaves_nothing_behind(tmp_path):
    study = ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=31"]
    plan = ["sweeps=no_teacher", "trainer.epochs=1", "unfreeze.start_epoch=0", "unfreeze.rate=1"]
    process = program.begin(tmp_path, "-m", *TINY, *plan, *study)

    def finished() -> int:
        return len(list(tmp_path.rglob("summary.json")))

    early = used(process, lambda: finished() >= 6, "trial 6")
    late = used(process, lambda: finished() >= 30, "trial 30")
    check(early, late)
    assert process.communicate()[1] == ""
    assert process.poll() == 0
