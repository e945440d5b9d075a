"""Batches depend on (seed, epoch, position) only; workers change nothing but the time."""

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import albumentations
import numpy as np
import program
import psutil
import pytest
import torch
from pairs import put
from torch import nn
from waiting import until

from kd.config.compose import compose
from kd.config.read import read
from kd.data import Folder, Shapes
from kd.data.batches.batch import Batch
from kd.data.batches.loading import EvalLoader, Loading, TrainLoader
from kd.data.batches.order import Order
from kd.data.views.augmentation import Augmentation
from kd.distillation.logit_cache import LogitCache
from kd.errors import ConfigError, DataError
from kd.experiment.builders import build_train_loader
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.networks.network import Network
from kd.settings import NetworkSettings
from kd.system import signals
from kd.system.world import SOLO, World
from tests.data.views.test_augmentation import recipe

SOURCE = Shapes(image_size=(32, 32), train=23, val=7, test=5)


class Broken(Shapes):
    """Shapes of which one sample cannot be read."""

    def read(self, split, index):
        if index == 3:
            raise DataError(f"{self.name(split, index)} is broken: mend it")
        return super().read(split, index)


def augmentation(seed=0):
    return Augmentation([albumentations.HorizontalFlip(p=0.5), albumentations.GaussNoise(p=0.5)], seed)


def loader(source=SOURCE, seed=0, batch_size=4, workers=0, world=SOLO, **options):
    return TrainLoader(source, augmentation(seed), batch_size, seed, Loading(workers, world=world), **options)


def same(one, other):
    tensors = ("images", "masks", "indices")
    return one.view == other.view and all(torch.equal(getattr(one, t), getattr(other, t)) for t in tensors)


def all_same(one, other):
    one, other = list(one), list(other)
    return len(one) == len(other) and all(map(same, one, other))


@pytest.fixture(scope="module")
def two_workers():
    return loader(workers=2)


def test_workers_change_nothing_in_any_epoch_and_order(two_workers):
    alone = loader()
    for epoch in (0, 1, 5, 1):
        assert all_same(alone.epoch(epoch), two_workers.epoch(epoch))


def test_an_epoch_prepared_in_advance_is_the_same(two_workers):
    alone = loader()
    list(two_workers.epoch(0))
    for epoch, begun in ((1, 0), (2, 3), (3, 0)):  # the second is resumed in its middle
        two_workers.prepare_next(4)
        two_workers.prepare_next(4)
        assert all_same(alone.epoch(epoch, begun), two_workers.epoch(epoch, begun))
    two_workers.prepare_next(4)  # there is no fifth
    assert not two_workers._prepared


def test_workers_persist_across_epochs(two_workers):
    list(two_workers.epoch(0))
    first = {worker.pid for worker in two_workers._loader._iterator._workers}
    list(two_workers.epoch(1))
    assert {worker.pid for worker in two_workers._loader._iterator._workers} == first
    assert len(first) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_epoch_does_not_affect_the_next(workers, two_workers):
    used = two_workers if workers else loader()
    for _ in zip(range(2), used.epoch(3), strict=False):
        pass
    assert all_same(used.epoch(4), loader().epoch(4))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_starting_late_gives_the_rest_of_the_epoch(workers, start, two_workers):
    used = two_workers if workers else loader()
    assert all_same(used.epoch(2, start), list(loader().epoch(2))[start:])


def test_skipped_batches_are_not_loaded():
    class Counting(Shapes):
        reads = 0

        def read(self, split, index):
            Counting.reads += 1
            return super().read(split, index)

    list(loader(Counting(image_size=(32, 32), train=23)).epoch(0, start=3))
    assert Counting.reads == 2 * 4


def test_an_epoch_shows_each_sample_at_most_once_in_an_order_of_its_own():
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1):
            batches = list(loader(seed=seed).epoch(epoch))
            orders.append(tuple(torch.cat([batch.indices for batch in batches]).tolist()))
            assert {batch.view for batch in batches} == {epoch}
    assert all(len(order) == len(set(order)) == 20 for order in orders)
    assert len(set(orders)) == 4


def test_all_samples_are_seen_over_epochs():
    seen = torch.cat([batch.indices for epoch in range(8) for batch in loader().epoch(epoch)])
    assert set(seen.tolist()) == set(range(23))


@pytest.mark.parametrize(
    ("batch_size", "lengths"),
    [(4, [4] * 5), (23, [23]), (22, [22]), (24, [23]), (1, [1] * 23)],
)
def test_the_incomplete_batch_is_dropped_unless_it_is_the_only_one(batch_size, lengths):
    used = loader(batch_size=batch_size)
    assert [len(batch) for batch in used.epoch(0)] == lengths
    assert used.steps() == len(lengths)


def test_a_batch_holds_the_views_of_its_samples():
    batch = next(loader().epoch(6))
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.masks.shape == (4, 32, 32)
    assert batch.images.dtype == batch.masks.dtype == torch.uint8
    assert batch.indices.dtype == torch.int64
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for position, index in enumerate(batch.indices.tolist()):
        image, mask = augmentation()(*SOURCE.read("train", index), 6, index)
        assert np.array_equal(batch.images[position].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(batch.masks[position].numpy(), mask)


@pytest.mark.parametrize(("device", "asynchronous"), [("cuda:1", True), ("mps", False), ("cpu", False)])
def test_a_copy_to_other_devices_than_cuda_is_over_before_its_source_can_be_freed(device, asynchronous, monkeypatch):
    batch, asked = next(loader().epoch(0)), set()
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _, non_blocking: asked.add(non_blocking) or tensor)
    batch.to(device, non_blocking=True)
    batch.to(torch.device(device), non_blocking=True)
    assert asked == {asynchronous}


def test_a_batch_moves_whole():
    batch = next(loader().epoch(0))
    moved = batch.to("cpu", non_blocking=True)
    assert isinstance(moved, Batch)
    assert same(moved, batch)
    assert batch.to("meta").masks.device.type == "meta"
    assert batch.answers is moved.answers is None
    taught = replace(batch, answers=(torch.ones(4, 1, 32, 32, dtype=torch.float16),))
    assert torch.equal(taught.to("cpu").answers[0], taught.answers[0])
    assert taught.to("meta").answers[0].device.type == "meta"


# repeated views, and stored teacher logits


def test_epochs_cycle_through_the_given_number_of_views():
    used = loader(views=3)
    for epoch in range(7):
        for batch in used.epoch(epoch):
            assert batch.view == epoch % 3
            for position, index in enumerate(batch.indices.tolist()):
                image, _ = augmentation()(*SOURCE.read("train", index), epoch % 3, index)
                assert np.array_equal(batch.images[position].permute(1, 2, 0).numpy(), image)


def test_repeated_views_have_a_new_order_each_time():
    """The order depends on the epoch, not on the view."""
    orders = [[batch.indices.tolist() for batch in loader(views=2).epoch(epoch)] for epoch in (0, 2)]
    assert orders[0] == [batch.indices.tolist() for batch in loader().epoch(0)]
    assert orders[0] != orders[1]


def test_as_many_views_as_epochs_give_a_new_view_in_each():
    for epoch in range(3):
        assert all_same(loader(views=3).epoch(epoch), loader().epoch(epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_has_its_teacher_logits_once_all_of_them_are_stored(workers, tmp_path):
    logit_cache = LogitCache(tmp_path / "teacher" / "abc", 23, (1, 2, 2))
    used = loader(views=2, workers=workers, stored={"train": [logit_cache]})
    assert all(batch.answers is None for batch in used.epoch(0))

    def logits(view, index):
        return torch.tensor([[[view, index], [index, view]]]).half()

    missing = 5
    for view in (0, 1):
        known = [index for index in range(23) if index != missing]
        logit_cache.write(view, known, torch.stack([logits(view, index) for index in known]))
    for epoch in (1, 2):
        for batch in used.epoch(epoch):
            indices = batch.indices.tolist()
            assert (batch.answers is None) == (missing in indices)
            if batch.answers is not None:
                assert torch.equal(batch.answers[0], torch.stack([logits(epoch % 2, index) for index in indices]))
    logit_cache.write(0, [missing], logits(0, missing)[None])
    assert all(batch.answers is not None for batch in used.epoch(4))
    assert all_same(used.epoch(4), loader(views=2).epoch(4))


def test_the_number_of_views_is_checked():
    with pytest.raises(ValueError, match="views must be a whole number, 1 or more, but got 0"):
        loader(views=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_every_sample_once_in_order_and_unchanged(workers, split):
    used = EvalLoader(SOURCE, split, 3, Loading(workers))
    for _ in range(2):
        batches = list(used)
        assert len(batches) == len(used)
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(SOURCE.size(split)))
        assert {batch.view for batch in batches} == {-1}
        for batch in batches:
            for position, index in enumerate(batch.indices.tolist()):
                image, mask = SOURCE.read(split, index)
                assert np.array_equal(batch.images[position].permute(1, 2, 0).numpy(), image)
                assert np.array_equal(batch.masks[position].numpy(), mask)


def test_loading_draws_nothing_from_the_global_generators(two_workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(loader().epoch(0))
    list(two_workers.epoch(0))
    list(EvalLoader(SOURCE, "val", 3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_error_in_a_worker_reaches_the_caller_unchanged(workers):
    source = Broken(image_size=(32, 32), train=8, val=8)
    message = r"^train_00003 is broken: mend it$"
    used = loader(source, workers=workers)
    for epoch in (0, 1):
        with pytest.raises(DataError, match=message):
            list(used.epoch(epoch))
    with pytest.raises(DataError, match=r"^val_00003 is broken: mend it$"):
        list(EvalLoader(source, "val", 2, Loading(workers)))


@pytest.mark.parametrize("number", signals.JOBS)
def test_a_signal_to_the_whole_job_leaves_workers_working(number, two_workers):
    rest = two_workers.epoch(0)
    next(rest)
    for worker in two_workers._loader._iterator._workers:
        subprocess.run(["sh", "-c", f"kill -{int(number)} {worker.pid}"], check=True)
    list(rest)
    assert all_same(loader().epoch(1), two_workers.epoch(1))


def test_the_main_process_can_terminate_a_worker():
    used = loader(workers=1)
    list(used.epoch(0))
    (worker,) = used._loader._iterator._workers
    worker.terminate()
    worker.join(program.PATIENCE)
    assert worker.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_run_all_of_whose_processes_are_signalled_saves_and_resumes(number, root):
    options = ["backbone=tiny", "loss=hard_only", "trainer.epochs=500", "trainer.workers=2", "trainer.device=cpu",
               "tracking=none", "pictures=false", "data.train=16", "data.val=4", "data.test=4",
               "data.image_size=[32,32]"]  # fmt: skip
    running = program.begin(root, *options)

    def is_training() -> bool:
        assert running.poll() is None, running.communicate()
        return any(path.stat().st_size for path in root.glob("runs/**/metrics.jsonl"))

    until(is_training, "the first epoch", program.PATIENCE)
    main = psutil.Process(running.pid)
    for process in [*main.children(recursive=True), main]:
        process.send_signal(number)
    out, err = running.communicate()
    assert running.returncode == 128 + number
    assert "interrupted" in err.splitlines()  # a worker that was just starting may say that its parent is gone
    assert "resume " in out + err


def test_an_error_in_the_augmentation_reaches_the_caller_unchanged():
    used = TrainLoader(SOURCE, Augmentation([albumentations.Normalize(p=1)], 0), 4, 0, Loading(workers=1))
    with pytest.raises(ConfigError, match="by Normalize"):
        list(used.epoch(0))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more, but got 0"):
        loader(batch_size=0)
    with pytest.raises(ValueError, match="workers must be a whole number, 0 or more, but got -1"):
        EvalLoader(SOURCE, "val", 1, Loading(workers=-1))
    with pytest.raises(ValueError, match="start must be a whole number, from 0 to 5, but got 6"):
        next(loader().epoch(0, start=6))


@pytest.mark.slow
def test_a_program_that_stops_in_mid_epoch_exits():
    program = (
        "from kd.data import Shapes; from kd.data.batches.loading import *\n"
        "from kd.data.views.augmentation import Augmentation\n"
        "source = Shapes(image_size=(32, 32))\n"
        "train = TrainLoader(source, Augmentation([], 0), 4, 0, Loading(workers=2))\n"
        "val = EvalLoader(source, 'val', 4, Loading(workers=1))\n"
        "if __name__ == '__main__':\n"
        "    batches = train.epoch(0)\n"
        "    print(len(next(batches)), len(list(val)))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert result.stdout == "4 12\n"
    assert result.stderr == ""


# data damaged during a run


def overwrite(path):
    """Half of the file is missing, as while another copy is written over it."""
    os.truncate(path, path.stat().st_size // 2)


def become_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path):
    path.unlink()
    path.mkdir()


ACCIDENTS = [
    (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
    (lambda path: shutil.rmtree(path.parent.parent), "cannot be read (No such file or directory)"),
    (overwrite, "cannot be read as an image"),
    (become_a_folder, "cannot be read (Is a directory)"),
    (become_a_pipe, "is not a file but a pipe"),
]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("accident", "says"), ACCIDENTS, ids="vanished whole_folder truncated folder pipe".split())
def test_a_file_damaged_in_mid_epoch_gives_a_one_line_error_that_names_it(accident, says, workers, tmp_path):
    for number in range(24):
        put(tmp_path, f"s{number:02}")
    put(tmp_path, "v", split="val")
    used = loader(Folder(tmp_path, image_size=(32, 64)), batch_size=2, workers=workers)
    batches = used.epoch(0)
    next(batches)
    last = Order(0).epoch(0, 24)[-1]
    accident(tmp_path / "images" / "train" / f"s{last:02}.png")  # far beyond what workers have read ahead
    with pytest.raises(DataError) as caught:
        list(batches)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/images/train/s")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_data_vanishes_ends_in_one_line(workers, root):
    data = root / "pictures"
    for number in range(16):
        put(data, f"s{number}", split="train" if number < 8 else "val")
    running = program.begin(
        root, "data=folder", f"data.root={data}", "data.image_size=[32,64]", "backbone=tiny", "loss=hard_only",
        "unfreeze=all", "trainer.batch_size=2", "trainer.epochs=500", "trainer.device=cpu", "tracking=none",
        "pictures=false", f"trainer.workers={workers}", "data.cache=off",
    )  # fmt: skip

    def is_training() -> bool:
        assert running.poll() is None, running.communicate()
        return any(path.stat().st_size for path in root.glob("runs/**/metrics.jsonl"))

    until(is_training, "the first epoch", program.PATIENCE)
    shutil.rmtree(data / "images")
    _, err = running.communicate()
    assert running.returncode == 1
    assert err.count("\n") == 1, err
    assert err.startswith(f"error: {data}/images/")
    assert "cannot be read (No such file or directory)" in err
    assert not list(root.glob("runs/**/*.tmp"))


# what validation and test see


class WithModes(nn.Module):
    """Modules that depend on the mode: batch norm and dropout. `seen` is the mode at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.head = nn.Conv2d(8, 1, 1)
        self.seen = []
        for module in self.modules():
            module.register_forward_hook(lambda module, *_: self.seen.append(module.training))

    def forward(self, x):
        return self.head(self.encoder(x))


def network():
    torch.manual_seed(0)
    return Network(NetworkSettings(arch="unet", encoder="hand-made"), WithModes(), 1, SOURCE.class_names).train()


def context(*overrides, transforms=()):
    small = ["data.image_size=[32,32]", "data.train=4", "data.val=5", "data.test=3", "trainer.device=cpu"]
    settings = read(compose(["backbone=tiny", "trainer.batch_size=2", *small, *overrides]))
    return RunContext.of(settings, list(transforms), signals.Stop())


def metrics(of, split):
    return Evaluator(of).evaluate(network(), split).metrics(SOURCE.class_names)


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_never_see_augmentation(split):
    heavy = context(transforms=recipe("heavy"))
    assert metrics(heavy, split) == metrics(context(), split)
    shown = torch.cat([batch.images for batch in Evaluator(heavy).loader(split)])
    stored = np.stack([heavy.data.read(split, index)[0] for index in range(heavy.data.size(split))])
    assert np.array_equal(shown.permute(0, 2, 3, 1).numpy(), stored)
    assert not np.array_equal(
        next(build_train_loader(heavy, 0).epoch(0)).images, next(build_train_loader(context(), 0).epoch(0)).images
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_never_see_temperature(split):
    cold, hot = (context("schedule=constant", f"schedule.initial={initial}") for initial in (1, 40))
    assert cold.settings.schedule(0) != hot.settings.schedule(0)
    assert metrics(cold, split) == metrics(hot, split)


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_never_see_training_mode_layers(split):
    who = network()
    assert all(module.training for module in who.body.modules())
    Evaluator(context()).evaluate(who, split)
    assert who.body.seen
    assert not any(who.body.seen)


# several processes


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_processes_parts_of_a_training_batch_make_the_batch(size):
    parts = [list(loader(world=World(rank, size)).epoch(1)) for rank in range(size)]
    for whole, *shares in zip(loader().epoch(1), *parts, strict=True):
        for name in ("images", "masks", "indices"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
        assert len(whole) == sum(loader(world=World(0, size)).batch_size())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_whole_evaluation_batches_are_dealt_out_among_processes(size):
    whole, hands = list(EvalLoader(SOURCE, "val", 3)), []
    for rank in range(size):
        dealt = EvalLoader(SOURCE, "val", 3, Loading(world=World(rank, size)))
        assert len(dealt) == len(whole)
        hands.append(list(dealt))
    for index, batch in enumerate(whole):
        assert same(hands[index % size][index // size], batch)
    assert sum(map(len, hands)) == len(whole)
