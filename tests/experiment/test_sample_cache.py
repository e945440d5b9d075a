"""One line says how many samples fit into memory, if not all do, and who cannot share it."""

import multiprocessing
import os

import pytest

from kd.config.compose import compose
from kd.config.read import read
from kd.data import cache
from kd.experiment import sample_cache as module
from kd.experiment.context import RunContext
from kd.experiment.sample_cache import share_samples
from kd.system.record_file import file_bytes
from kd.system.world import SOLO, World

TINY = [
    "backbone=tiny", "augment=none", "tracking=none", "trainer.device=cpu", "trainer.batch_size=4", "trainer.epochs=4",
    "data.image_size=[32,32]", "data.train=8", "data.val=3", "data.test=2", "unfreeze=all",
]  # fmt: skip
EACH = file_bytes(1, 4 * 32 * 32)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(cache, "_memory", {})


def context(*overrides, fit=100.0, world=SOLO) -> RunContext:
    return RunContext.of(read(compose([*TINY, f"data.cache_gb={fit * EACH / 1e9}", *overrides])), (), world=world)


def said(capsys, *overrides, **options) -> list[str]:
    share_samples(context(*overrides, **options))
    return capsys.readouterr().out.splitlines()


def test_nothing_is_said_of_samples_that_all_fit(capsys):
    assert said(capsys, fit=13.5) == []


def test_one_line_says_how_many_samples_fit_and_what_limits_them(capsys):
    (line,) = said(capsys, fit=9.5)
    assert line.startswith(
        "data     9 of 13 samples fit into memory, 3.7e-05 GB: data.cache_gb=7.79e-05, and at most half"
    )
    assert line.endswith("(data.cache=disk keeps it)")


def test_the_disk_is_no_remedy_for_pictures_of_their_own_sizes(capsys):
    (line,) = said(capsys, "data.fit=crop", fit=9.5)
    assert "9 of 13 samples" in line
    assert "disk" not in line


def test_pictures_without_masks_count_if_the_run_uses_them(capsys):
    pictures = "data.unlabelled=5"
    assert said(capsys, pictures, "loss=hard_only", fit=14.5) == []
    assert ["14 of 18 samples" in line for line in said(capsys, pictures, "loss=cwd", fit=14.5)] == [True]


@pytest.mark.parametrize("choice", ["off", "disk"])
def test_nothing_is_said_of_memory_that_is_not_used(choice, capsys):
    assert said(capsys, f"data.cache={choice}", fit=0) == []
    assert cache._memory == {}


def test_only_the_main_process_speaks(capsys, monkeypatch):
    monkeypatch.setattr(module, "share", lambda source, world: False)
    assert said(capsys, fit=1.5, world=World(1, 2, 1, 2)) == []
    assert len(said(capsys, fit=1.5, world=World(0, 2, 0, 2))) == 2


def test_processes_that_decode_for_themselves_are_named(capsys, monkeypatch):
    monkeypatch.setattr(module, "share", lambda source, world: False)
    (line,) = said(capsys, world=World(0, 2, 0, 2))
    assert "the processes of a machine cannot open each other's memory" in line


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_that_cannot_open_the_memory_are_named(method, file, workers, capsys, monkeypatch):
    start = multiprocessing.get_context(method)
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda: start)
    if not file:
        monkeypatch.delattr(os, "memfd_create")
    found = said(capsys, f"trainer.workers={workers}")
    assert ["loader processes" in line for line in found] == [True] * (method == "spawn" and workers > 0 and not file)
