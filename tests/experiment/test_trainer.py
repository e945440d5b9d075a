"""Around the loop: the best epoch is chosen on validation and kept; the folder holds all, mirror or no mirror."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from kd import tracking
from kd.config.compose import compose
from kd.config.read import read
from kd.data import Shapes
from kd.distillation.losses import DistillationLoss
from kd.errors import ConfigError
from kd.experiment.context import RunContext
from kd.experiment.trainer import TrainingJob, figures, train
from kd.networks import saved
from kd.run.folder import RunFolder
from kd.settings import Tracking
from kd.system.world import World
from kd.tracking import NullRun

TINY = [
    "backbone=tiny", "augment=none", "tracking=none", "trainer.device=cpu", "trainer.batch_size=4", "trainer.epochs=4",
    "data.image_size=[32,32]", "data.train=8", "data.val=3", "data.test=2", "optimizer.lr=0.01",
]  # fmt: skip
HARD = {"alpha": 0, "beta": 0, "gamma": 0.5, "delta": 1.0}


def bench(*overrides, unfreeze="all") -> RunContext:
    return RunContext.of(read(compose([*TINY, f"unfreeze={unfreeze}", *overrides])), [])


def lesson(on: RunContext, who="student", seed=0, **changes) -> TrainingJob:
    network = on.build(who, seed)
    timeline = on.settings.timeline(len(network.partition.blocks))
    return TrainingJob(
        who, network, timeline, DistillationLoss(HARD, on.data.classes, on.data.ignore_index), seed, **changes
    )


@dataclass
class Notes(NullRun):
    """A mirror that remembers what the folder held whenever it was to look."""

    folder: RunFolder

    def __post_init__(self):
        self.epochs = []

    def refresh(self):
        self.epochs.append(self.folder.metrics())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training: its bench, lesson, folder, mirror and best record.

    The objective stands for one that is best in the first epoch: the temperature falls, and more is better.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_ROOT", str(tmp_path_factory.mktemp("root")))
        on = bench("unfreeze.start_epoch=1", "unfreeze.rate=1", unfreeze="progressive")
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    mirror = Notes(folder)
    folder.append_metrics({"epoch": 7, "from": "an earlier attempt"})
    taught = lesson(on, objective="temperature")
    return on, taught, folder, mirror, train(taught, on, folder, mirror)


# the bench


def test_on_a_cpu_the_workers_are_the_main_process_unless_asked_for():
    assert bench("trainer.workers=auto").workers == 0
    assert bench("trainer.workers=3").workers == 3


def test_the_bench_has_the_device_precision_and_layout_asked_for():
    on = bench("trainer.precision=bf16", "trainer.channels_last=false")
    assert (on.precision.device.type, on.precision.name, on.precision.channels_last) == ("cpu", "bf16", False)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"^trainer\.device=cuda:77"):
        bench("trainer.device=cuda:77")


def test_the_recipe_is_the_optimisers_and_the_trainers_settings():
    overrides = ["optimizer.weight_decay=0.2", "optimizer.betas=[0.8,0.9]", "optimizer.clip_norm=null"]
    recipe = bench(*overrides, "trainer.accumulate=3").recipe(5)
    assert (recipe.seed, recipe.weight_decay, recipe.betas) == (5, 0.2, (0.8, 0.9))
    assert (recipe.clip_norm, recipe.accumulate) == (None, 3)


def test_networks_are_built_from_the_seed_alone():
    on = bench()

    def built(seed, drawn):
        torch.manual_seed(drawn)
        return on.build("student", seed).state_dict()

    one, same, other = built(1, 0), built(1, 9), built(2, 0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert on.build("teacher", 0).settings.encoder == "resnet18"


def test_batches_follow_from_the_seed_of_the_lesson():
    on = bench()
    orders = [[b.indices.tolist() for b in on.train_loader(seed).epoch(0)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [len(batch) for batch in orders[0]] == [4, 4]


# a training


def test_there_is_one_record_per_epoch_and_none_of_an_earlier_attempt(trained):
    _, _, folder, _, _ = trained
    assert [record["epoch"] for record in folder.metrics()] == [0, 1, 2, 3]
    assert [record["unfrozen_blocks"] for record in folder.metrics()] == [0, 1, 2, 3]


def test_the_best_record_is_that_of_the_best_epoch(trained):
    _, _, folder, _, best = trained
    assert best == folder.metrics()[0]


def test_the_saved_weights_are_those_of_the_best_epoch(trained):
    on, taught, folder, _, best = trained
    file = folder / "student.safetensors"
    found = on.evaluate(on.precision.place(saved.load_file(file)), "val").metrics(on.data.class_names)
    assert {f"val/{name}": value for name, value in found.items()} == {
        name: value for name, value in best.items() if name.startswith("val/")
    }
    facts = json.loads((folder / "student.json").read_text())
    assert (facts["epoch"], facts["image_size"]) == (best["epoch"], [32, 32])
    last = on.evaluate(taught.network, "val").loss
    assert last == folder.metrics()[-1]["val/loss"] != best["val/loss"]


def test_the_mirror_looks_once_an_epoch_is_in_the_folder(trained):
    _, _, folder, mirror, _ = trained
    records = folder.metrics()
    assert mirror.epochs == [records[: count + 1] for count in range(len(records))]


def test_a_training_without_a_mirror_leaves_the_same_folder(trained, tmp_path):
    """Invariant 11: the store is down; weights and figures are the same bit for bit."""
    on, _, folder, _, _ = trained
    alone = RunFolder(tmp_path / "run")
    settings = Tracking(enabled=True, uri="http://127.0.0.1:9", experiment="e", run_name=None, tags={})
    with tracking.run(settings, tmp_path, alone, "r", {}) as mirror:
        train(lesson(on, objective="temperature"), on, alone, mirror)
    timing = {"seconds", "images_per_second", "time"}
    for one, other in zip(folder.metrics(), alone.metrics(), strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}
    assert {path.name for path in alone.path.iterdir() if not path.name.startswith("checkpoint")} == {
        path.name for path in folder.path.iterdir() if not path.name.startswith("checkpoint")
    } | {"run.json"}
    for name in ("student.json", "student.safetensors"):
        assert (alone / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(("objective", "choose"), [("val/loss", min), ("val/miou", max)])
def test_the_best_epoch_is_chosen_by_the_objective(objective, choose, tmp_path):
    on, folder = bench("trainer.epochs=3"), RunFolder(tmp_path)
    best = train(lesson(on, objective=objective), on, folder, NullRun())
    figures = [record[objective] for record in folder.metrics()]
    assert best == folder.metrics()[figures.index(choose(figures))]
    assert json.loads((folder / "student.json").read_text())["epoch"] == best["epoch"]


def test_a_frozen_random_encoder_gets_statistics_and_one_from_a_file_keeps_its_own(tmp_path):
    def encoder(network):
        return {name: value.clone() for name, value in network.body.encoder.state_dict().items()}

    on = bench("trainer.epochs=1", unfreeze="frozen")
    random = lesson(on)
    before = encoder(random.network)
    train(random, on, RunFolder(tmp_path / "one"), NullRun())
    moved = {name for name, value in encoder(random.network).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}

    file = tmp_path / "other.safetensors"
    for name, value in random.network.named_buffers():
        if "running" in name:
            value += 0.5  # statistics of other data
    saved.save(random.network, file)
    on = bench("trainer.epochs=1", f"backbone.student.weights={file}", unfreeze="frozen")
    started = lesson(on)
    before = encoder(started.network)
    train(started, on, RunFolder(tmp_path / "other"), NullRun())
    assert all(torch.equal(value, before[name]) for name, value in encoder(started.network).items())
    assert all(torch.equal(value, before[name]) for name, value in encoder(saved.load_file(file)).items())


# figures


class WithoutTest(Shapes):
    def size(self, split):
        return 0 if split == "test" else super().size(split)


def test_figures_say_what_a_network_is_and_how_good(trained):
    on, _, folder, _, best = trained
    file = folder / "student.safetensors"
    network = on.precision.place(saved.load_file(file))
    found, labels = figures(network, on, file)
    measures = ["loss", "miou", "dice", "iou/background", "iou/foreground"]
    expected = [
        "parameters",
        "macs",
        "file_bytes",
        "latency_ms",
        *(f"{s}/{m}" for s in ("val", "test") for m in measures),
    ]
    assert list(found) == expected
    assert found["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert found["file_bytes"] == file.stat().st_size > 4 * found["parameters"]
    assert found["val/miou"] == best["val/miou"]
    test = on.evaluate(network, "test").metrics(on.data.class_names)
    assert {name: found[f"test/{name}"] for name in test} == test
    assert torch.cat(labels).shape == (3, 32, 32)
    assert on.evaluate(network, "val", labels).agreement == 1.0


def test_without_a_test_split_there_are_no_figures_for_it(trained):
    on, taught, folder, _, _ = trained
    data = WithoutTest(image_size=(32, 32), val=3)
    alone = replace(on, settings=on.settings.model_copy(update={"data": data}))
    found, _ = figures(taught.network, alone, folder / "student.safetensors")
    assert not [name for name in found if name.startswith("test/")]
    assert "val/miou" in found


@pytest.mark.parametrize("override", ["trainer.batch_size=3", "data.train=3"])
def test_a_batch_that_is_too_small_for_the_processes_is_refused_by_its_key(override):
    settings = read(compose([*TINY, "unfreeze=all", override]))
    with pytest.raises(ConfigError, match=r"^trainer\.batch_size=\d+ \(of \d+ training images\) is shared by 4 proc"):
        RunContext.of(settings, [], world=World(0, 4))
