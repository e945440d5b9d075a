"""A context has the device, workers and precision that settings ask for, or says why it cannot."""

import albumentations
import pytest
import torch

from kd.config.compose import compose
from kd.config.read import read
from kd.errors import ConfigError
from kd.experiment import context as module
from kd.experiment.context import RunContext
from kd.system.world import SOLO, World

TINY = [
    "backbone=tiny", "augment=none", "tracking=none", "trainer.device=cpu", "trainer.batch_size=4", "trainer.epochs=4",
    "data.image_size=[32,32]", "data.train=8", "data.val=3", "data.test=2", "optimizer.lr=0.01",
]  # fmt: skip

OF_FOUR = World(0, 4, 0, 4)


def context(*overrides, transforms=(), world=SOLO) -> RunContext:
    return RunContext.of(read(compose([*TINY, "unfreeze=all", *overrides])), transforms, world=world)


def test_on_a_cpu_the_workers_are_the_main_process_unless_asked_for():
    assert context("trainer.workers=auto").workers == 0
    assert context("trainer.workers=3").workers == 3


@pytest.mark.parametrize(
    ("given", "trials", "world", "workers"),
    [
        (1, 1, SOLO, 1),
        (64, 1, SOLO, 63),
        (64, 4, SOLO, 15),
        (64, 1, OF_FOUR, 15),
        (64, 4, OF_FOUR, 3),
    ],
)
def test_on_a_gpu_workers_are_a_share_of_the_cores_that_the_job_has(given, trials, world, workers, monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: given)
    monkeypatch.setattr(module, "trials_at_once", lambda: trials)
    settings = context("data.train=1000").settings
    assert module._worker_count(settings, torch.device("cuda"), world) == workers


def test_on_a_gpu_workers_hold_no_more_than_a_part_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 64)
    batch = 4 * 4 * 32 * 32
    monkeypatch.setattr(module, "free_memory", lambda: 7 * module.MEMORY_SHARE * module.AHEAD * batch)
    settings = context("data.train=1000").settings
    assert module._worker_count(settings, torch.device("cuda"), SOLO) == 7
    monkeypatch.setattr(module, "free_memory", lambda: 0)
    assert module._worker_count(settings, torch.device("cuda"), SOLO) == 1


def test_a_context_has_the_device_precision_and_layout_asked_for():
    asked = context("trainer.precision=bf16", "trainer.channels_last=false")
    assert (asked.precision.device.type, asked.precision.name, asked.precision.channels_last) == ("cpu", "bf16", False)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"^trainer\.device=cuda:77"):
        context("trainer.device=cuda:77")


@pytest.mark.parametrize("override", ["trainer.batch_size=3", "data.train=3"])
def test_a_batch_that_is_too_small_for_the_processes_is_refused_by_its_key(override):
    with pytest.raises(ConfigError, match=r"^trainer\.batch_size=\d+ \(of \d+ training images\) is shared by 4 proc"):
        context(override, world=World(0, 4))


def test_without_augmentation_all_views_are_the_same():
    flip = [albumentations.HorizontalFlip(p=0.5)]
    assert context("augment.views=3").views == context().views == 1
    assert context("augment.views=3", transforms=flip).views == 3
    assert context(transforms=flip).views is None


def test_batches_are_shared_by_the_processes_of_the_context_and_by_none_of_a_solo_one():
    two = context("trainer.workers=3", world=World(0, 2))
    assert (two.loading.workers, two.loading.world) == (3, two.world)
    assert (two.solo().loading.workers, two.solo().world) == (3, SOLO)
    assert two.solo().settings is two.settings
