"""The cache changes no student, whether it is empty, damaged, shared, cut short or too small."""

import json
import math
import signal
from pathlib import Path

import albumentations
import cv2
import PIL
import program
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from pairs import put
from PIL import Image
from safetensors.torch import load_file, save_file
from waiting import until

from kd.config.compose import compose
from kd.config.read import read
from kd.config.transforms import build_transforms
from kd.distillation.logit_codec import CODECS
from kd.distillation.teacher import CachedTeacher
from kd.experiment.builders import build_loss, build_network
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.teacher_cache import build_teacher
from kd.experiment.trainer import TrainingJob
from kd.experiment.trainer import train as train_job
from kd.run.folder import RunFolder
from kd.settings.run import Trainer
from kd.system.record_file import FileRecords, file_bytes
from kd.tracking import NullRun
from kd.training.step import Distillation

BASE = [
    "backbone=tiny", "backbone.teacher.encoder=tu-mobilenetv3_small_050", "data.image_size=[32,32]", "data.train=16",
    "data.val=8", "data.test=8", "trainer.batch_size=8", "trainer.epochs=3", "trainer.device=cpu",
    "unfreeze.start_epoch=1", "unfreeze.rate=1", "tracking=none", "pictures=false", "teacher.epochs=1",
]  # fmt: skip
TIMES = ("time", "seconds", "seconds_waiting", "images_per_second")
REQUESTED = 3 * 16  # logits in a run: epochs x samples


# what logits depend on


def context(*overrides: str) -> RunContext:
    settings = read(compose([*BASE, *overrides]))
    return RunContext.of(settings, build_transforms(settings.augment.transforms))


def folder_of(file: Path, *overrides: str, of: RunContext | None = None) -> str:
    """The name of the folder in which a teacher's logits are cached."""
    return build_teacher(of or context(*overrides), file, 3).caches["train"][0].folder.name


@pytest.fixture(scope="module")
def usual(file, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_ROOT", str(tmp_path_factory.mktemp("root")))
        return folder_of(file, "data.cache=off")


@pytest.mark.parametrize(
    "change",
    [
        "seed=1", "augment=heavy", "augment=none", "augment.transforms.0.p=0.4", "augment.views=3",
        "data.train=17", "data.seed=1", "data.image_size=[64,32]", "data.classes=3", "trainer.batch_size=4",
        "trainer.precision=bf16", "trainer.channels_last=false", "trainer.compile=true",
    ],
)  # fmt: skip
def test_what_a_logit_depends_on_is_in_the_name_of_its_folder(change, file, usual):
    assert folder_of(file, change) != usual


def test_what_a_logit_does_not_depend_on_is_not(file, usual):
    """Everything about the student, and how a run goes about it, at once."""
    assert usual == folder_of(
        file, "schedule=linear", "schedule.initial=20", "loss=soft_only", "loss.alpha=0.9", "unfreeze.rate=2",
        "optimizer.lr=0.5", "backbone.student.encoder=resnet18", "trainer.epochs=9", "trainer.accumulate=2",
        "trainer.workers=2", "objective=val/dice", "tracking.experiment=other", "teacher.cache=read_only",
        "teacher.cache_gb=1", "data.cache=disk", "data.cache_gb=1", "trainer.checkpoint_minutes=1",
        "teacher.epochs=9",
    )  # fmt: skip


def test_each_stored_form_has_a_folder_of_its_own_that_says_so_and_features_have_not(file):
    """So neither is read for another; features are in half precision with each."""
    features = ["loss.features=1.0", "loss.feature_stages=[5]"]
    found = {form: build_teacher(context(*features, f"teacher.stored={form}"), file, 3).caches["train"]
             for form in CODECS}  # fmt: skip
    assert len({logits.folder for logits, _ in found.values()}) == len(CODECS)
    assert len({of_stage.folder for _, of_stage in found.values()}) == 1
    assert [logits.record_bytes for logits, _ in found.values()] == [2 * 32 * 32, 8 + 32 * 32]
    facts = {form: json.loads((logits.folder / "facts.json").read_text()) for form, (logits, _) in found.items()}
    assert {form: each.get("stored", "exact") for form, each in facts.items()} == {form: form for form in CODECS}


def test_with_repeated_views_a_logit_does_not_depend_on_its_batch(file):
    """As each is computed alone there."""
    names = {folder_of(file, "augment.views=2", f"trainer.batch_size={size}") for size in (4, 8)}
    assert len(names) == 1
    alone = {
        views: build_teacher(context(f"augment.views={views}", "teacher.cache=off"), file, 3) for views in ("2", "null")
    }
    assert alone["2"].one_by_one
    assert not alone["null"].one_by_one


def test_another_teacher_is_another_folder_and_a_copy_is_not(file, usual, tmp_path):
    copy, same = tmp_path / "copy.safetensors", context()
    copy.write_bytes(file.read_bytes())
    spec = json.loads(file.with_suffix(".json").read_text())

    def name(**changes) -> str:
        copy.with_suffix(".json").write_text(json.dumps(spec | changes))
        return folder_of(copy, of=same)

    assert name() == name(class_names=["ground", "thing"]) == usual
    assert len({name(mean=[0.5, 0.5, 0.5]), name(std=[0.5, 0.5, 0.5]), usual}) == 3
    weights = load_file(file)
    save_file({name: tensor + (tensor.ndim == 4) * 1e-6 for name, tensor in weights.items()}, copy)
    assert name() != usual


@pytest.mark.parametrize("what", [torch, smp, timm, albumentations, cv2, PIL], ids=lambda module: module.__name__)
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


# a training


def train(file: Path, root: Path, *overrides: str) -> tuple[bytes, dict[str, int] | None]:
    """Train a student: its bytes, and the counts of the teacher's logits."""
    of = context(*overrides)
    teacher = build_teacher(of, file, of.settings.trainer.epochs)
    student = build_network(of, "student", of.settings.seed)
    timeline = of.settings.timeline(len(student.partition.blocks))
    loss = build_loss(of, of.settings.loss.model_dump())
    number = len(list(root.glob("student*")))
    folder = RunFolder(root / f"student{number}")
    job = TrainingJob("student", Distillation(student, loss, timeline, teacher), 0)
    train_job(job, Evaluator(of), folder, NullRun())
    counts = teacher.counts() if isinstance(teacher, CachedTeacher) else None
    return (folder / "student.safetensors").read_bytes() + metrics(folder.path), counts


def metrics(folder: Path) -> bytes:
    """The lines of epochs, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.dumps([{name: value for name, value in line.items() if name not in TIMES} for line in lines]).encode()


VIEWS = ["augment.views=2", "trainer.epochs=4"]


@pytest.mark.slow
def test_a_compiled_training_gives_one_student_whether_logits_are_read_or_computed(file, root, monkeypatch):
    """Student, teacher and loss are traced, which takes seconds; what compiles them takes minutes."""
    monkeypatch.setattr(Trainer, "backend", property(lambda self: "eager" if self.compile else None))
    torch._dynamo.reset()
    asked = ["augment.views=1", "trainer.epochs=2", "trainer.compile=true"]
    live, _ = train(file, root, *asked, "teacher.cache=off")
    student, found = train(file, root, *asked)
    assert student == live
    assert found == {"read": 16, "computed": 16, "not_stored": 0}


@pytest.mark.slow
def test_repeated_views_are_computed_once_and_alike_in_every_batch(file, root):
    """In epoch 2 view 0 comes back, in batches of other samples."""
    live, _ = train(file, root, *VIEWS, "teacher.cache=off")
    student, found = train(file, root, *VIEWS)
    assert student == live
    assert found == {"read": 32, "computed": 32, "not_stored": 0}
    assert [FileRecords(path).filled().all() for path in record_files_of(root)] == [True] * 2


@pytest.mark.parametrize("form", [form for form in CODECS if form != "exact"])
def test_each_stored_form_gives_one_student_whether_logits_are_read_stored_or_computed(form, file, root):
    """All three in one run, whose budget is of one view of two, against a run without a cache."""
    asked = [*VIEWS, f"teacher.stored={form}"]
    shape, dtype = CODECS[form].record((1, 32, 32))
    view = file_bytes(16, math.prod(shape) * dtype.itemsize)
    live, _ = train(file, root, *asked, "teacher.cache=off")
    student, found = train(file, root, *asked, f"teacher.cache_gb={1.5 * view / 1e9}")
    assert student == live
    assert found == {"read": 16, "computed": 48, "not_stored": 32}
    assert [path.stat().st_size for path in record_files_of(root)] == [view]


PICTURES = ["data.unlabelled=6", "data.unlabelled_share=0.2"]  # 2 beside the 8 of a batch: 3 steps are a pass


@pytest.mark.slow
def test_logits_of_labelled_samples_stay_valid_when_pictures_without_masks_are_added(file, root):
    """Bit for bit those of a live teacher, for both; 8 steps begin a third pass over the pictures."""
    train(file, root, "trainer.epochs=4")
    live, _ = train(file, root, *PICTURES, "trainer.epochs=4", "teacher.cache=off")
    first, found = train(file, root, *PICTURES, "trainer.epochs=4")
    again, warm = train(file, root, *PICTURES, "trainer.epochs=4")
    assert first == again == live
    assert found == {"read": 4 * 16, "computed": 16, "not_stored": 0}
    assert warm == {"read": 4 * 16 + 16, "computed": 0, "not_stored": 0}
    filled: dict[str, int] = {}
    for path in record_files_of(root):
        filled[path.parent.name] = filled.get(path.parent.name, 0) + int(FileRecords(path).filled().sum())
    assert sorted(filled.values()) == [16, 4 * 16]


def test_logits_stay_valid_when_features_are_asked_for(file, root):
    train(file, root)
    of = context("loss.features=1.0", "loss.feature_stages=[4,5]", *PICTURES)
    teacher = build_teacher(of, file, 3)
    assert {split: len(caches) for split, caches in teacher.caches.items()} == {"train": 3, "unlabelled": 3}
    logits, *features = teacher.caches["train"]
    assert logits.stored(3) == 3
    assert [each.stored(3) for each in features] == [0, 0]
    assert len({cache.folder for caches in teacher.caches.values() for cache in caches}) == 6
    assert [each.shape for each in features] == [(24, 2, 2), (288, 1, 1)]


def test_the_budget_counts_the_pictures_without_masks_too(file, root, capsys):
    """All three views of the 16 samples fit, and one of the two of the 6 pictures."""
    samples, pictures = (file_bytes(count, 2 * 32 * 32) for count in (16, 6))
    build_teacher(context(*PICTURES, f"teacher.cache_gb={(3 * samples + 1.5 * pictures) / 1e9}"), file, 3)
    assert "a view of the pictures without masks take 1.2e-05 GB; 1 of 2 views fit" in capsys.readouterr().out


def test_a_budget_for_some_views_changes_nothing(file, root, capsys):
    view = file_bytes(16, 2 * 32 * 32)
    live, _ = train(file, root, "teacher.cache=off")
    student, found = train(file, root, f"teacher.cache_gb={1.5 * view / 1e9}")
    assert student == live
    assert found == {"read": 0, "computed": REQUESTED, "not_stored": 32}
    assert [path.stat().st_size for path in record_files_of(root)] == [view]
    assert "1 of 3 views fit into teacher.cache_gb" in capsys.readouterr().out


def test_a_cache_that_cannot_be_made_ends_no_run(file, root):
    (root / "runs" / "cache").mkdir(parents=True)
    (root / "runs" / "cache" / "teacher").write_text("a file where the folder should be")
    _, found = train(file, root, "trainer.epochs=2", "trainer.workers=1")
    assert found == {"read": 0, "computed": 32, "not_stored": 32}


# end to end


def record_files_of(root: Path) -> list[Path]:
    return sorted(root.glob("runs/cache/teacher/*/view-*.records"))


def content(root: Path) -> dict[str, bytes]:
    """Everything in the cache, by name."""
    cache = root / "runs" / "cache"
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    """One byte of one record."""
    place = FileRecords(path)._offset(3) + 5
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
        """The student's bytes and its epochs; the counts of the teacher's logits."""
        _, err = process.communicate()
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
    """The outcome of a run without a cache."""
    student, counts = home.run("teacher.cache=off")
    assert counts is None
    assert not record_files_of(home.root)
    return student


@pytest.fixture(scope="module")
def killed(home, off):
    """How many logits are in the cache that a run was filling when it was killed."""
    process, _ = home.begin()

    def is_filling() -> bool:
        assert process.poll() is None, process.communicate()
        return any(FileRecords(path).filled().any() for path in record_files_of(home.root))

    until(is_filling, "a record", program.PATIENCE)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return sum(int(FileRecords(path).filled().sum()) for path in record_files_of(home.root))


@pytest.fixture(scope="module")
def together(home, off, killed):
    """Two runs that continue to fill it at the same time."""
    begun = [home.begin() for _ in range(2)]
    return [home.end(*one) for one in begun]


@pytest.mark.slow
def test_runs_that_start_together_share_a_cache_and_what_a_killed_one_left(home, off, killed, together):
    assert [student for student, _ in together] == [off, off]
    assert 0 < killed <= REQUESTED
    assert [FileRecords(path).filled().all() for path in record_files_of(home.root)] == [True] * 3
    for _, counts in together:
        assert counts["read"] + counts["computed"] == REQUESTED
        assert counts["not_stored"] == 0
        assert counts["read"] >= killed // 8 * 8


def test_with_a_read_only_cache_damaged_logits_are_computed_and_nothing_is_written(root):
    home = Home(root, "data.classes=3")
    first, counts = home.run()
    assert counts == {"read": 0, "computed": REQUESTED, "not_stored": 0}
    damage(record_files_of(root)[1])
    before = content(root)
    student, counts = home.run("teacher.cache=read_only", "data.cache=off")
    assert student == first
    assert counts == {"read": REQUESTED - 8, "computed": 8, "not_stored": 8}
    assert content(root) == before


@pytest.mark.slow
def test_damaged_logits_are_replaced_and_workers_and_the_data_cache_change_nothing(home, off, together):
    first, second, _ = record_files_of(home.root)
    damage(first)
    second.write_bytes(b"garbage")
    student, counts = home.run("trainer.workers=1", "data.cache=disk")
    assert student == off
    assert counts == {"read": REQUESTED - 8 - 16, "computed": 8 + 16, "not_stored": 0}
    assert [FileRecords(path).damaged() for path in record_files_of(home.root)] == [[]] * 3
