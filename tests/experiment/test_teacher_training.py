"""A teacher is trained once per fingerprint, which has every setting that it depends on, and no other."""

import shutil
import threading

import pytest
import torch
from safetensors.torch import save_file
from waiting import LIMIT

from kd.config.compose import compose
from kd.config.read import read
from kd.errors import ModelError, UserError
from kd.experiment import teacher_training
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.measured_teacher import MeasuredTeacher
from kd.experiment.teacher_network import teacher_network
from kd.experiment.teacher_training import fingerprint
from kd.networks import build, saved
from kd.run.folder import RunFolder
from kd.settings import NetworkSettings

BASE = ["backbone=tiny", "data.image_size=[32,32]", "data.train=4", "data.val=2", "data.test=1", "trainer.device=cpu"]
TINY = [
    *BASE, "backbone.teacher.encoder=tu-mobilenetv3_small_050", "tracking=none", "augment=none",
    "trainer.batch_size=4",
    "trainer.epochs=1", "unfreeze=all",
]  # fmt: skip


def settings(*overrides):
    return read(compose([*BASE, *overrides]))


def context(*overrides) -> RunContext:
    return RunContext.of(read(compose([*TINY, *overrides])), [])


def obtain(of: RunContext) -> MeasuredTeacher:
    return teacher_training.obtain(Evaluator(of))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project root with the teacher of TINY in it."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_ROOT", str(root))
        obtain(context())
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of that root, which is this test's own."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.setenv("KD_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def trainings(monkeypatch):
    """The teachers that were trained during this test."""
    done, original = [], teacher_training._train

    def train(evaluator, folder):
        done.append(folder.path.name)
        original(evaluator, folder)

    monkeypatch.setattr(teacher_training, "_train", train)
    return done


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# the fingerprint


@pytest.fixture(scope="module")
def usual():
    """The fingerprint without any change."""
    return fingerprint(settings())


@pytest.mark.parametrize(
    "change",
    [
        "backbone.teacher.encoder=resnet34",
        "backbone.teacher.arch=fpn",
        "teacher.epochs=7",
        "trainer.epochs=7",
        "teacher.lr=0.0005",
        "optimizer.lr=0.0005",
        "teacher.weight_decay=0.5",
        "teacher.encoder_lr_scale=0.5",
        "teacher.gamma=1",
        "teacher.delta=0.5",
        "teacher.seed=1",
        "optimizer.min_lr=1e-5",
        "optimizer.weight_decay=0.01",
        "optimizer.betas=[0.8,0.999]",
        "optimizer.clip_norm=null",
        "trainer.batch_size=5",
        "trainer.accumulate=2",
        "trainer.precision=bf16",
        "trainer.compile=true",
        "trainer.validate_every=2",
        "augment=none",
        "augment=heavy",
        "augment.transforms=[]",
        "data.image_size=[64,32]",
        "data.classes=3",
        "data.ignore_index=255",
        "data.train=5",
        "data.val=3",
        "data.seed=1",
        "data.noise=3",
        "data.labelled=3",
    ],
)
def test_what_a_teacher_depends_on_is_in_its_fingerprint(change, usual):
    assert fingerprint(settings(change)) != usual


@pytest.mark.parametrize(
    "change",
    [
        "seed=5",
        "objective=val/dice",
        "schedule=linear",
        "schedule.initial=20",
        "schedule.final=2",
        "unfreeze=frozen",
        "unfreeze.rate=7",
        "unfreeze.start_epoch=1",
        "loss=hinton",
        "loss.alpha=0.9",
        "loss.gamma=0",
        "loss.delta=2",
        "backbone.student.encoder=resnet18",
        "backbone.student.arch=fpn",
        "backbone.student.weights=imagenet",
        "optimizer.encoder_lr_scale=0.7",
        "optimizer.depth_decay=0.5",
        "trainer.device=auto",
        "trainer.workers=2",
        "tracking=none",
        "pictures=false",
        "tracking.experiment=other",
        "tracking.run_name=x",
        "teacher.cache=off",
        "teacher.cache_gb=1",
        "data.cache=disk",
        "data.cache_gb=1",
        "augment.views=null",
        "augment.views=3",
        "data.unlabelled=9",
        "data.unlabelled_share=0.1",
    ],
)
def test_what_only_the_student_depends_on_is_not(change, usual):
    assert fingerprint(settings(change)) == usual


@pytest.mark.parametrize(
    ("fixed", "change"),
    [
        ("teacher.epochs=30", "trainer.epochs=9"),
        ("teacher.lr=0.001", "optimizer.lr=0.0005"),
        ("teacher.weight_decay=0.1", "optimizer.weight_decay=0.2"),
    ],
)
def test_a_student_may_train_otherwise_than_a_teacher_of_fixed_settings(fixed, change):
    assert fingerprint(settings(fixed, change)) == fingerprint(settings(fixed))


def test_the_place_of_the_project_is_not_in_the_fingerprint(monkeypatch, tmp_path, usual):
    monkeypatch.setenv("KD_ROOT", str(tmp_path / "elsewhere"))
    assert fingerprint(settings()) == usual


def test_the_fingerprint_is_a_short_name_for_a_folder(usual):
    assert len(usual) == 16
    assert usual.isalnum()


def test_the_content_of_a_file_of_weights_is_in_the_fingerprint(tmp_path):
    file = tmp_path / "encoder.safetensors"
    prints = []
    for value in (0.0, 1.0, 0.0):
        save_file({"weight": torch.full((2,), value)}, file)
        prints.append(fingerprint(settings(f"backbone.teacher.weights={file}")))
    assert prints[0] == prints[2] != prints[1]


# trained once


def test_a_teacher_is_trained_and_loaded_from_its_folder(project):
    file = obtain(context()).file
    folder = project / "runs" / "teachers" / fingerprint(context().settings)
    assert file == folder / "teacher.safetensors"
    assert teacher_network(context(), file).class_names == ("background", "foreground")
    left = {"teacher.safetensors", "teacher.json", "summary.json", "metrics.jsonl", "curves.png", "run.json"}
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == left


def test_a_teacher_is_not_trained_again(project, trainings, capsys):
    first = obtain(context())
    second = obtain(context("seed=3", "loss=soft_only", "unfreeze=frozen", "backbone.student.encoder=resnet18"))
    assert trainings == []
    assert first.file == second.file
    assert capsys.readouterr().out.count("trained before") == 2


def test_another_teacher_has_a_folder_of_its_own(project, trainings):
    old = {path.name for path in (project / "runs" / "teachers").iterdir()}
    first, second = obtain(context()), obtain(context("teacher.seed=1"))
    assert len(trainings) == 1
    assert {path.name for path in (project / "runs" / "teachers").iterdir()} == old | set(trainings)
    assert not same(saved.load_file(first.file), saved.load_file(second.file))


def test_a_teacher_whose_training_was_interrupted_is_trained_again_to_the_same_weights(project, trainings):
    file = obtain(context()).file
    weights, lines = file.read_bytes(), (file.parent / "metrics.jsonl").read_text().count("\n")
    (file.parent / "summary.json").unlink()
    file.write_bytes(weights[:1000])
    obtain(context("seed=9"))
    assert len(trainings) == 1
    assert file.read_bytes() == weights
    assert (file.parent / "metrics.jsonl").read_text().count("\n") == lines == 1


def test_runs_that_start_together_train_a_teacher_once(project, trainings, capsys, monkeypatch):
    shutil.rmtree(project / "runs")
    waits, say, train = threading.Event(), teacher_training.console.say, teacher_training._train

    def say_and_note(text):
        say(text)
        if "another process is training it; waiting" in text:
            waits.set()

    def train_while_the_other_waits(evaluator, folder):
        assert waits.wait(LIMIT)
        train(evaluator, folder)

    monkeypatch.setattr(teacher_training.console, "say", say_and_note)
    monkeypatch.setattr(teacher_training, "_train", train_while_the_other_waits)
    shared, found = context(), []
    threads = [threading.Thread(target=lambda: found.append(obtain(shared))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trainings) == 1
    assert len(found) == 2
    assert found[0].file == found[1].file
    assert found[0].metrics == found[1].metrics
    assert "another process is training it; waiting" in capsys.readouterr().out


def test_a_teacher_has_the_class_names_of_the_data(project):
    """Names are not learnt, but the metrics of teacher and student are compared by name."""
    named = ["data.classes=2", 'data.class_names=["ground","thing"]']
    renamed = ["data.classes=2", 'data.class_names=["floor","object"]']
    first, second = obtain(context(*named)), obtain(context(*renamed))
    assert first.file == second.file
    assert teacher_network(context(*named), first.file).class_names == ("ground", "thing")
    assert teacher_network(context(*renamed), second.file).class_names == ("floor", "object")
    assert "val/iou/thing" in first.metrics
    assert "val/iou/object" in second.metrics


def test_a_teacher_without_any_loss_is_refused(project):
    with pytest.raises(UserError, match="teacher"):
        obtain(context("teacher.gamma=0", "teacher.delta=0"))


# a teacher that exists


def test_a_teacher_from_a_file_or_a_run_folder_is_that_one(project, trainings):
    expected = obtain(context())
    for path in (expected.file, expected.file.parent):
        found = obtain(context("teacher=file", f"teacher.path={path}"))
        assert found.file == expected.file
        assert found.metrics == expected.metrics
    assert trainings == []


def test_a_student_may_teach(project, tmp_path):
    expected = saved.load_file(obtain(context()).file)
    saved.save(expected, tmp_path / "run" / "student.safetensors")
    found = obtain(context("teacher=file", f"teacher.path={tmp_path / 'run'}"))
    assert found.file == tmp_path / "run" / "student.safetensors"
    assert same(teacher_network(context(), found.file), expected)


def test_a_damaged_teacher_is_refused(project):
    file = obtain(context()).file
    given = context("teacher=file", f"teacher.path={file}")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        obtain(given)


def test_a_teacher_of_another_number_of_logits_is_refused(tmp_path):
    """Two logits of the names that binary data has: its answers would be broadcast against one logit in silence."""
    torch.manual_seed(0)
    names = ("background", "foreground")
    two = build.build(NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050"), 2, names, "backbone.teacher")
    saved.save(two, tmp_path / "teacher.safetensors")
    with pytest.raises(UserError, match="class"):
        obtain(context("teacher=file", f"teacher.path={tmp_path}"))


def test_a_trained_teacher_whose_process_was_killed_before_its_end_is_tidied(project, trainings):
    (folder,) = (project / "runs" / "teachers").iterdir()
    kept = {path.name for path in folder.iterdir()}
    run = RunFolder(folder)
    run.identify(status="RUNNING")
    for name in ("checkpoint.safetensors", "checkpoint.before.safetensors", "checkpoint.before.new", ".tmpabc123"):
        (folder / name).touch()
    obtain(context())
    assert trainings == []
    assert {path.name for path in folder.iterdir()} == kept
    assert run.identity()["status"] == "FINISHED"
