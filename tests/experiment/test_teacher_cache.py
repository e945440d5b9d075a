"""A student does not know whether there is a cache: nor where it is empty, damaged, shared, cut off or too small."""

import json
import os
import signal
import time
from pathlib import Path

import albumentations
import cv2
import PIL
import program
import pytest
import torch
from pairs import put
from PIL import Image
from safetensors.torch import load_file, save_file

from kd.config.compose import compose
from kd.config.read import read
from kd.config.transforms import build_transforms
from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import CachedTeacher
from kd.experiment import teacher_cache, trainer
from kd.experiment.context import RunContext
from kd.experiment.teacher_cache import MeasuredTeacher, answering, known
from kd.experiment.trainer import TrainingJob
from kd.networks import build, saved
from kd.run.folder import RunFolder
from kd.settings import NetworkSettings
from kd.system import tensor_file
from kd.system.record_file import FileRecords, file_bytes
from kd.tracking import NullRun

BASE = [
    "backbone=tiny", "backbone.teacher.encoder=tu-mobilenetv3_small_050", "data.image_size=[32,32]", "data.train=16",
    "data.val=8", "data.test=8", "trainer.batch_size=8", "trainer.epochs=3", "trainer.device=cpu",
    "unfreeze.start_epoch=1", "unfreeze.rate=1", "tracking=none", "pictures=false", "teacher.epochs=1",
]  # fmt: skip
TIMES = ("time", "seconds", "images_per_second")
ANSWERS = 3 * 16  # asked for in a run: epochs x samples


# what answers follow from


def bench(*overrides: str) -> RunContext:
    settings = read(compose([*BASE, *overrides]))
    return RunContext.of(settings, build_transforms(settings.augment.transforms))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A teacher."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    unet = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    saved.save(build.build(unet, 1, ("background", "foreground"), "backbone.teacher"), path)
    return path


def folder_of(file: Path, *overrides: str, of: RunContext | None = None) -> str:
    """The name of the folder in which a teacher's answers are kept."""
    labels = torch.zeros(8, 32, 32, dtype=torch.uint8)
    return answering(of or bench(*overrides), MeasuredTeacher(file, {}, labels), 3).answers.folder.name


@pytest.fixture(scope="module")
def usual(file):
    return folder_of(file, "data.cache=off")


@pytest.mark.parametrize(
    "change",
    [
        "seed=1", "augment=heavy", "augment=none", "augment.transforms.0.p=0.4", "augment.views=3",
        "data.train=17", "data.seed=1", "data.image_size=[64,32]", "data.classes=3", "trainer.batch_size=4",
        "trainer.precision=bf16", "trainer.channels_last=false",
    ],
)  # fmt: skip
def test_what_an_answer_follows_from_is_in_the_name_of_its_folder(change, file, usual):
    assert folder_of(file, change) != usual


def test_what_an_answer_does_not_follow_from_is_not(file, usual):
    """Everything about the student, and how a run goes about it, at once."""
    assert usual == folder_of(
        file, "schedule=linear", "schedule.initial=20", "loss=soft_only", "loss.alpha=0.9", "unfreeze.rate=2",
        "optimizer.lr=0.5", "backbone.student.encoder=resnet18", "trainer.epochs=9", "trainer.accumulate=2",
        "trainer.workers=2", "objective=val/dice", "tracking.experiment=other", "teacher.cache=read_only",
        "teacher.cache_gb=1", "data.cache=disk", "data.cache_gb=1", "trainer.checkpoint_minutes=1",
        "teacher.epochs=9",
    )  # fmt: skip


def test_where_views_come_again_an_answer_does_not_follow_from_its_batch(file):
    """As each is computed alone there."""
    names = {folder_of(file, "augment.views=2", f"trainer.batch_size={size}") for size in (4, 8)}
    assert len(names) == 1
    known = MeasuredTeacher(file, {}, torch.zeros(8, 32, 32, dtype=torch.uint8))
    alone = {
        views: answering(bench(f"augment.views={views}", "teacher.cache=off"), known, 3) for views in ("2", "null")
    }
    assert alone["2"].one_by_one
    assert not alone["null"].one_by_one


def test_another_teacher_is_another_folder_and_a_copy_is_not(file, usual, tmp_path):
    copy, on = tmp_path / "copy.safetensors", bench()
    copy.write_bytes(file.read_bytes())
    spec = json.loads(file.with_suffix(".json").read_text())

    def name(**changes) -> str:
        copy.with_suffix(".json").write_text(json.dumps(spec | changes))
        return folder_of(copy, of=on)

    assert name() == name(class_names=["ground", "thing"]) == usual
    assert len({name(mean=[0.5, 0.5, 0.5]), name(std=[0.5, 0.5, 0.5]), usual}) == 3
    weights = load_file(file)
    save_file({name: tensor + (tensor.ndim == 4) * 1e-6 for name, tensor in weights.items()}, copy)
    assert name() != usual


@pytest.mark.parametrize("what", [torch, albumentations, cv2, PIL], ids=lambda module: module.__name__)
def test_another_version_of_what_computes_is_another_folder(what, file, usual, monkeypatch):
    monkeypatch.setattr(what, "__version__", "0.0")
    assert folder_of(file) != usual


def test_another_number_of_threads_is_another_folder(file, usual):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert folder_of(file) != usual
    finally:
        torch.set_num_threads(before)


def test_other_pictures_under_the_same_names_are_another_folder(file, tmp_path):
    for split in ("train", "val"):
        put(tmp_path, "s", split=split)

    def name() -> str:
        overrides = ["data=folder", f"data.root={tmp_path}", "data.image_size=[32,32]", "backbone=tiny"]
        return folder_of(file, of=RunContext.of(read(compose(overrides)), []))

    first = name()
    assert name() == first
    picture = tmp_path / "images" / "train" / "s.png"
    with Image.open(picture) as image:
        changed = image.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(picture)
    assert name() != first


# figures


@pytest.fixture
def measured(monkeypatch):
    """How often a teacher was measured."""
    done = []
    original = teacher_cache.figures
    monkeypatch.setattr(teacher_cache, "figures", lambda *given: (done.append(1), original(*given))[1])
    return done


def alike(one: MeasuredTeacher, other: MeasuredTeacher) -> bool:
    return (one.file, one.figures) == (other.file, other.figures) and torch.equal(one.labels, other.labels)


def test_a_teacher_is_measured_once(file, measured, root):
    first = known(bench(), file)
    (kept,) = root.glob("runs/cache/figures/*")
    os.utime(kept, (0, 0))
    again = known(bench("seed=5", "loss=soft_only"), file)
    assert alike(first, again)
    assert len(measured) == 1
    assert kept.stat().st_mtime > 0  # it was used


def test_figures_that_are_damaged_are_measured_again(file, measured, root, caplog):
    first = known(bench(), file)
    (kept,) = root.glob("runs/cache/figures/*")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = known(bench(), file)
    assert len(measured) == 2
    assert torch.equal(first.labels, again.labels)
    assert "is damaged (its digest does not fit its content); the teacher is measured again" in caplog.text
    assert torch.equal(tensor_file.read(kept)[0]["labels"], first.labels)


def test_figures_are_only_read_or_neither_where_the_cache_is(file, measured, root):
    for mode in ("off", "read_only"):
        known(bench(f"teacher.cache={mode}"), file)
    assert len(measured) == 2
    assert not (root / "runs" / "cache" / "figures").exists()
    known(bench(), file)
    (kept,) = root.glob("runs/cache/figures/*")
    os.utime(kept, (0, 0))
    known(bench("teacher.cache=read_only"), file)
    assert len(measured) == 3
    assert kept.stat().st_mtime == 0
    known(bench("teacher.cache=off"), file)
    assert len(measured) == 4


# a training


def train(file: Path, root: Path, *overrides: str) -> tuple[bytes, dict[str, int] | None]:
    """Train a student: its bytes, and what became of the answers."""
    on = bench(*overrides)
    teacher = answering(
        on, MeasuredTeacher(file, {}, torch.zeros(8, 32, 32, dtype=torch.uint8)), on.settings.trainer.epochs
    )
    student = on.build("student", on.settings.seed)
    timeline = on.settings.timeline(len(student.partition.blocks))
    loss = DistillationLoss(on.settings.loss.model_dump(), on.data.classes, on.data.ignore_index)
    number = len(list(root.glob("student*")))
    folder = RunFolder(root / f"student{number}")
    trainer.train(TrainingJob("student", student, timeline, loss, 0, teacher=teacher), on, folder, NullRun())
    counts = teacher.counts() if isinstance(teacher, CachedTeacher) else None
    return (folder / "student.safetensors").read_bytes() + metrics(folder.path), counts


def metrics(folder: Path) -> bytes:
    """The lines of epochs, beside times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.dumps([{name: value for name, value in line.items() if name not in TIMES} for line in lines]).encode()


VIEWS = ["augment.views=2", "trainer.epochs=4"]


def test_views_that_come_again_are_answered_once_and_alike_in_every_batch(file, root):
    """In epoch 2 view 0 comes back, in batches of other samples."""
    live, _ = train(file, root, *VIEWS, "teacher.cache=off")
    student, found = train(file, root, *VIEWS)
    assert student == live
    assert found == {"read": 32, "computed": 32, "not_stored": 0}
    assert [FileRecords(path).filled().all() for path in slots_of(root)] == [True] * 2


def test_a_budget_for_a_part_changes_nothing(file, root, capsys):
    view = file_bytes(16, 2 * 32 * 32)
    live, _ = train(file, root, "teacher.cache=off")
    student, found = train(file, root, f"teacher.cache_gb={1.5 * view / 1e9}")
    assert student == live
    assert found == {"read": 0, "computed": ANSWERS, "not_stored": 32}
    assert [path.stat().st_size for path in slots_of(root)] == [view]
    assert "of which 1 of 3 fit into teacher.cache_gb" in capsys.readouterr().out


def test_a_cache_that_cannot_be_made_ends_no_run(file, root):
    (root / "runs" / "cache").mkdir(parents=True)
    (root / "runs" / "cache" / "teacher").write_text("a file where the folder should be")
    _, found = train(file, root, "trainer.epochs=2", "trainer.workers=1")
    assert found == {"read": 0, "computed": 32, "not_stored": 32}


# end to end


def slots_of(root: Path) -> list[Path]:
    return sorted(root.glob("runs/cache/teacher/*/view-*.slots"))


def content(root: Path) -> dict[str, bytes]:
    """Everything in the cache, by name."""
    cache = root / "runs" / "cache"
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    """One byte of one record."""
    place = FileRecords(path)._place(3) + 5
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


class Home:
    """A project with a teacher, in which runs are made one after another."""

    def __init__(self, root: Path, *overrides: str) -> None:
        self.root, self.overrides, self.runs = root, [*BASE, *overrides], 0

    def begin(self, *overrides: str) -> tuple[program.Program, Path]:
        self.runs += 1
        folder = self.root / "runs" / f"run{self.runs}"
        return program.begin(self.root, *self.overrides, *overrides, f"hydra.run.dir={folder}"), folder

    def end(self, process: program.Program, folder: Path) -> tuple[bytes, dict[str, int] | None]:
        """The student's bytes and its epochs; what became of the teacher's answers."""
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        counts = json.loads((folder / "summary.json").read_text()).get("teacher_answers")
        return (folder / "student.safetensors").read_bytes() + metrics(folder), counts

    def run(self, *overrides: str) -> tuple[bytes, dict[str, int] | None]:
        return self.end(*self.begin(*overrides))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("home"), "data.classes=3")


@pytest.fixture(scope="module")
def off(home):
    """What a run ends in that knows of no cache."""
    student, counts = home.run("teacher.cache=off")
    assert counts is None
    assert not slots_of(home.root)
    return student


@pytest.fixture(scope="module")
def killed(home, off):
    """How many answers are in the cache that a run was filling when it was killed."""
    process, _ = home.begin()
    end = time.monotonic() + 120
    while not any(FileRecords(path).filled().any() for path in slots_of(home.root)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return sum(int(FileRecords(path).filled().sum()) for path in slots_of(home.root))


@pytest.fixture(scope="module")
def together(home, off, killed):
    """Two runs that go on filling it at the same time."""
    begun = [home.begin() for _ in range(2)]
    return [home.end(*one) for one in begun]


def test_runs_that_start_together_share_a_cache_and_what_a_killed_one_left(home, off, killed, together):
    assert [student for student, _ in together] == [off, off]
    assert 0 < killed <= ANSWERS
    assert [FileRecords(path).filled().all() for path in slots_of(home.root)] == [True] * 3
    for _, counts in together:
        assert counts["read"] + counts["computed"] == ANSWERS
        assert counts["not_stored"] == 0
        assert counts["read"] >= killed // 8 * 8


def test_where_the_cache_is_only_read_a_damaged_answer_is_computed_and_nothing_is_written(home, off, together):
    damage(slots_of(home.root)[1])
    before = content(home.root)
    student, counts = home.run("teacher.cache=read_only", "data.cache=off")
    assert student == off
    assert counts == {"read": ANSWERS - 8, "computed": 8, "not_stored": 8}
    assert content(home.root) == before


@pytest.mark.slow
def test_a_damaged_answer_is_mended_and_workers_and_the_cache_of_the_data_change_nothing(home, off, together):
    first, second, _ = slots_of(home.root)
    damage(first)
    second.write_bytes(b"garbage")
    student, counts = home.run("trainer.workers=1", "data.cache=disk")
    assert student == off
    assert counts == {"read": ANSWERS - 8 - 16, "computed": 8 + 16, "not_stored": 0}
    assert [FileRecords(path).damaged() for path in slots_of(home.root)] == [[]] * 3
