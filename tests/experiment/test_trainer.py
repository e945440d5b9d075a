"""The best epoch is chosen on validation and saved; the run folder is the same with and without MLflow."""

import json
from dataclasses import dataclass

import pytest
import torch

from kd import tracking
from kd.config.compose import compose
from kd.config.read import read
from kd.errors import DiskError, DivergedError
from kd.experiment.builders import build_loss, build_network
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.trainer import TrainingJob, train
from kd.networks import saved
from kd.run.folder import RunFolder
from kd.settings import Tracking
from kd.tracking import NullRun
from kd.training.step import Distillation

TINY = [
    "backbone=tiny", "augment=none", "tracking=none", "trainer.device=cpu", "trainer.batch_size=4", "trainer.epochs=4",
    "data.image_size=[32,32]", "data.train=8", "data.val=3", "data.test=2", "optimizer.lr=0.01",
]  # fmt: skip
HARD = {"alpha": 0, "beta": 0, "gamma": 0.5, "delta": 1.0}


def evaluator(*overrides, unfreeze="all") -> Evaluator:
    return Evaluator(RunContext.of(read(compose([*TINY, f"unfreeze={unfreeze}", *overrides])), []))


def training_job(context: RunContext, **changes) -> TrainingJob:
    student = build_network(context, "student", 0)
    timeline = context.settings.timeline(len(student.partition.blocks))
    return TrainingJob("student", Distillation(student, build_loss(context, HARD), timeline), 0, **changes)


@dataclass
class Notes(NullRun):
    """A mirror that records the folder's metrics at each refresh."""

    folder: RunFolder

    def __post_init__(self):
        self.epochs = []

    def refresh(self):
        self.epochs.append(self.folder.metrics())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training: its evaluator, job, folder, mirror and best record.

    The objective is best in the first epoch: the temperature falls, and more is better.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_ROOT", str(tmp_path_factory.mktemp("root")))
        used = evaluator("unfreeze.start_epoch=1", "unfreeze.rate=1", unfreeze="progressive")
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    mirror = Notes(folder)
    folder.append_metrics({"epoch": 7, "train/loss": 0.5})
    job = training_job(used.context, objective="temperature")
    return used, job, folder, mirror, train(job, used, folder, mirror)


# a training


def test_there_is_one_record_per_epoch_and_none_of_an_earlier_attempt(trained):
    _, _, folder, _, _ = trained
    assert [record["epoch"] for record in folder.metrics()] == [0, 1, 2, 3]
    assert [record["unfrozen_blocks"] for record in folder.metrics()] == [0, 1, 2, 3]


def test_the_best_record_is_that_of_the_best_epoch(trained):
    _, _, folder, _, best = trained
    assert best == folder.metrics()[0]


def test_the_saved_weights_are_those_of_the_best_epoch(trained):
    used, job, folder, _, best = trained
    context, file = used.context, folder / "student.safetensors"
    found = used.evaluate(context.precision.place(saved.load_file(file)), "val").metrics(context.data.class_names)
    assert {f"val/{name}": value for name, value in found.items()} == {
        name: value for name, value in best.items() if name.startswith("val/")
    }
    facts = json.loads((folder / "student.json").read_text())
    assert (facts["epoch"], facts["image_size"]) == (best["epoch"], [32, 32])
    last = used.evaluate(job.network, "val").loss
    assert last == folder.metrics()[-1]["val/loss"] != best["val/loss"]


def test_the_mirror_is_refreshed_once_an_epoch_is_in_the_folder(trained):
    _, _, folder, mirror, _ = trained
    records = folder.metrics()
    assert mirror.epochs == [records[: count + 1] for count in range(len(records))]


def test_a_training_without_a_mirror_leaves_the_same_folder(trained, tmp_path):
    """Invariant 11: the store is down; weights and figures are the same bit for bit."""
    used, _, folder, _, _ = trained
    alone = RunFolder(tmp_path / "run")
    settings = Tracking(enabled=True, uri="http://127.0.0.1:9", experiment="e", run_name=None, tags={})
    with tracking.run(settings, tmp_path, alone, tracking.Labels("r", {})) as mirror:
        train(training_job(used.context, objective="temperature"), used, alone, mirror)
    timing = {"seconds", "seconds_waiting", "images_per_second", "time"}
    for one, other in zip(folder.metrics(), alone.metrics(), strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}
    assert {path.name for path in alone.path.iterdir() if not path.name.startswith("checkpoint")} == {
        path.name for path in folder.path.iterdir() if not path.name.startswith("checkpoint")
    } | {"run.json"}
    for name in ("student.json", "student.safetensors"):
        assert (alone / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(("objective", "choose"), [("val/loss", min), ("val/miou", max)])
def test_the_best_epoch_is_chosen_by_the_objective(objective, choose, tmp_path):
    used, folder = evaluator("trainer.epochs=3"), RunFolder(tmp_path)
    best = train(training_job(used.context, objective=objective), used, folder, NullRun())
    values = [record[objective] for record in folder.metrics()]
    assert best == folder.metrics()[values.index(choose(values))]
    assert json.loads((folder / "student.json").read_text())["epoch"] == best["epoch"]


def test_a_frozen_random_encoder_gets_statistics_and_one_from_a_file_keeps_its_own(tmp_path):
    def encoder(network):
        return {name: value.clone() for name, value in network.body.encoder.state_dict().items()}

    used = evaluator("trainer.epochs=1", unfreeze="frozen")
    random = training_job(used.context)
    before = encoder(random.network)
    train(random, used, RunFolder(tmp_path / "one"), NullRun())
    moved = {name for name, value in encoder(random.network).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}

    file = tmp_path / "other.safetensors"
    for name, value in random.network.named_buffers():
        if "running" in name:
            value += 0.5  # statistics of other data
    saved.save(random.network, file)
    used = evaluator("trainer.epochs=1", f"backbone.student.weights={file}", unfreeze="frozen")
    started = training_job(used.context)
    before = encoder(started.network)
    train(started, used, RunFolder(tmp_path / "other"), NullRun())
    assert all(torch.equal(value, before[name]) for name, value in encoder(started.network).items())
    assert all(torch.equal(value, before[name]) for name, value in encoder(saved.load_file(file)).items())


@pytest.mark.parametrize("limit", [1, 2])
def test_a_training_stops_when_asked_to_and_again_when_resumed(limit, tmp_path):
    """`should_stop` gets the best objective so far, the epochs trained and the epochs planned."""
    used, folder, calls = evaluator(), RunFolder(tmp_path), []

    def should_stop(best, trained, planned):
        calls.append((best, trained, planned))
        return trained == limit

    for _ in range(2):
        train(training_job(used.context), used, folder, NullRun(), should_stop)
        records = folder.metrics()
        bests = [max(record["val/miou"] for record in records[: count + 1]) for count in range(limit)]
        assert len(records) == limit
        assert calls == [(best, count, 4) for count, best in enumerate(bests, 1)]
        calls.clear()


def test_a_diverged_training_names_its_samples(tmp_path):
    used = evaluator("trainer.epochs=1")
    job = training_job(used.context)
    with torch.no_grad():
        job.network.body.segmentation_head[0].bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match="train_") as caught:
        train(job, used, RunFolder(tmp_path), NullRun())
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (written["epoch"], written["step"]) == (0, 0)
    assert written["samples"] == [used.context.data.name(*sample) for sample in caught.value.samples]


def test_a_full_disk_does_not_hide_that_a_training_diverged(tmp_path, monkeypatch):
    def full(path, value):
        raise DiskError(f"{path}: No space left on device")

    monkeypatch.setattr("kd.experiment.trainer.write_json", full)
    used = evaluator("trainer.epochs=1")
    job = training_job(used.context)
    with torch.no_grad():
        job.network.body.segmentation_head[0].bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match="train_"):
        train(job, used, RunFolder(tmp_path), NullRun())
