"""A teacher from elsewhere teaches as ours do: the same answers from each form of a network, cached or not."""

import json
import shutil
import warnings

import program
import pytest
import torch
from torch import nn

from kd import models
from kd.composition import compose
from kd.config import read
from kd.data.loading import Batch
from kd.errors import ConfigError, ModelError
from kd.foreign.files import find
from kd.runner import Bench
from kd.settings import NetworkSettings
from kd.teacher import CachedTeacher, LiveTeacher
from kd.teacher_cache import answering, network
from kd.teacher_store import obtain

BASE = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=8", "data.val=4", "data.test=4", "trainer.batch_size=4",
    "trainer.epochs=2", "trainer.device=cpu", "unfreeze=all", "tracking=none", "augment=none",
]  # fmt: skip
CLASSES = ("data.classes=3",)
FORMS = ("smp", "smp of torch", "pt2", "onnx", "onnx of TorchScript")


def bench(*overrides: str) -> Bench:
    return Bench.of(read(compose([*BASE, *overrides])), [])


def batch(count=4, classes=3) -> Batch:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(1))
    return Batch(images, torch.zeros(count, 32, 32, dtype=torch.uint8), torch.arange(count), 0)


@pytest.fixture(scope="module")
def ours():
    """A network of ours, of three classes, whose batch norms have seen something."""
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    made = models.build(settings, 3, ("class_0", "class_1", "class_2"), "backbone.teacher")
    made.train()
    with torch.no_grad():
        for _ in range(3):
            made(batch().images)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def forms(ours, tmp_path_factory) -> dict[str, list[str]]:
    """The same network in every form, as the overrides that name it."""
    root, example = tmp_path_factory.mktemp("forms"), torch.rand(2, 3, 32, 32)
    ours.body.save_pretrained(root / "smp")
    shutil.copytree(root / "smp", root / "bin")
    (root / "bin" / "model.safetensors").unlink()
    torch.save(ours.body.state_dict(), root / "bin" / "pytorch_model.bin")
    dynamic = {0: torch.export.Dim.DYNAMIC}
    torch.export.save(torch.export.export(ours.body, (example,), dynamic_shapes=(dynamic,)), root / "teacher.pt2")
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that TorchScript needs
        torch.onnx.export(ours.body, (example,), root / "teacher.onnx", **axes)
        torch.jit.save(torch.jit.trace(ours.body, example), root / "teacher.ts")
        torch.onnx.export(torch.jit.load(root / "teacher.ts"), (example,), root / "script.onnx", **axes)
    exported = ["teacher=exported", "teacher.normalisation=imagenet"]
    return {
        "smp": ["teacher=smp", f"teacher.path={root / 'smp'}"],
        "smp of torch": ["teacher=smp", f"teacher.path={root / 'bin'}"],
        "pt2": [*exported, f"teacher.path={root / 'teacher.pt2'}"],
        "onnx": [*exported, f"teacher.path={root / 'teacher.onnx'}"],
        "onnx of TorchScript": [*exported, f"teacher.path={root / 'script.onnx'}"],
    }


def built(*overrides: str):
    on = bench(*overrides)
    return on, network(on, find(on.settings.teacher))


# the same answers


@pytest.mark.parametrize("form", FORMS)
def test_a_network_teaches_alike_in_every_form(form, ours, forms):
    on, teacher = built(*CLASSES, *forms[form])
    answers = LiveTeacher(teacher, on.precision)(batch())
    expected = LiveTeacher(ours, on.precision)(batch())
    torch.testing.assert_close(answers, expected, rtol=2e-3, atol=2e-3)
    assert teacher.count_parameters() >= ours.count_parameters()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_map_gives_the_classes_of_the_data_their_channels(ours, forms):
    _, plain = built(*CLASSES, *forms["smp"])
    _, turned = built(*CLASSES, *forms["smp"], "teacher.class_map=[2,0,1]")
    _, binary = built(*forms["smp"], "teacher.class_map=[2,0]")
    images = batch().images
    with torch.no_grad():
        answer = plain(images)
        torch.testing.assert_close(turned(images), answer[:, [2, 0, 1]])
        torch.testing.assert_close(binary(images), answer[:, 0:1] - answer[:, 2:3])


def test_a_map_that_is_missing_is_asked_for_when_the_file_is_read(forms):
    with pytest.raises(ConfigError, match=r"gives 3 channels, the data has 2 classes .*teacher.class_map="):
        built(*forms["pt2"])
    with pytest.raises(ConfigError, match=r"gives 3 channels, the data has 2 classes .*teacher.class_map="):
        read(compose([*BASE, *forms["smp"]]))


def test_a_file_of_another_size_is_refused(forms):
    with pytest.raises(ModelError, match=r"data.image_size=\[32, 32\]"):
        built(*CLASSES, *forms["pt2"], "data.image_size=[64,64]")


def test_pickles_in_the_place_of_a_network_are_not_executed(tmp_path):
    from test_bad_inputs import MARK, old_trap, trap

    for name in ("teacher.onnx", "teacher.pt2"):
        for write in (trap, old_trap):
            write(tmp_path / name)
            with pytest.raises(ModelError, match=r"^teacher\.path="):
                built("teacher=exported", f"teacher.path={tmp_path / name}", "teacher.normalisation=none")
    assert not (tmp_path / MARK).exists()


# what its answers follow from


def folder_of(*overrides: str) -> str:
    """The name of the folder in which a teacher's answers are kept."""
    on = bench(*CLASSES, *overrides)
    from kd.teacher_cache import Known

    known = Known(find(on.settings.teacher), {}, torch.zeros(4, 32, 32, dtype=torch.uint8))
    return answering(on, known, 2).answers.folder.name


@pytest.mark.parametrize(
    "change",
    [
        "teacher.class_map=[2,1,0]",
        "teacher.normalisation=none",
        "teacher.normalisation={mean:[0.485,0.456,0.406],std:[0.229,0.224,0.225],scale:255}",
    ],
)
@pytest.mark.parametrize("form", ["smp", "onnx"])
def test_the_answers_of_another_mapping_or_normalisation_are_kept_apart(change, form, forms):
    assert folder_of(*forms[form], change) != folder_of(*forms[form])


def test_the_answers_of_a_copy_are_the_same_and_those_of_another_network_are_not(forms, tmp_path):
    original = forms["smp"][1].partition("=")[2]
    shutil.copytree(original, tmp_path / "copy")
    copy = ["teacher=smp", f"teacher.path={tmp_path / 'copy'}"]
    assert folder_of(*copy) == folder_of(*forms["smp"])
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_interpolation": "bilinear"}))
    assert folder_of(*copy) != folder_of(*forms["smp"])


def test_the_answers_of_a_file_in_pieces_follow_from_each(tmp_path):
    from test_foreign_onnx_file import apart

    torch.manual_seed(0)
    names = []
    for bias in (0.0, 1.0):
        network = nn.Conv2d(3, 16, 5, stride=2, padding=2)
        with torch.no_grad():
            network.weight.zero_(), network.bias.fill_(bias)
        (tmp_path / "teacher.data").unlink(missing_ok=True)
        apart(network, tmp_path / "teacher.onnx")
        names.append(
            folder_of("teacher=exported", "teacher.normalisation=none", f"teacher.path={tmp_path}/teacher.onnx")
        )
    assert names[0] != names[1]


# as ours


@pytest.mark.parametrize("form", ["smp", "pt2", "onnx"])
def test_a_foreign_teacher_is_measured_once_and_its_answers_are_kept(form, forms):
    """Live, computed for the cache and read from it: the same bits."""
    on = bench(*CLASSES, *forms[form])
    known = obtain(on)
    assert known.figures["parameters"] > 0
    assert "val/iou/class_2" in known.figures
    assert obtain(bench(*CLASSES, *forms[form])).figures == known.figures
    live = answering(bench(*CLASSES, *forms[form], "teacher.cache=off"), known, 2)
    for reading in (False, True):
        teacher = answering(on, known, 2)
        assert isinstance(teacher, CachedTeacher)
        for one in on.train_loader(0, teacher.answers).epoch(0):
            assert torch.equal(teacher(one), live(one))
        assert teacher.counts()["read"] == (8 if reading else 0)


def test_a_student_is_distilled_from_a_network_of_smp(forms, root):
    """Through train.py, twice: the second run reads what the first has stored, and its student is the same."""
    students = []
    for _ in range(2):
        done = program.train(root, *BASE, *forms["smp"], "teacher.class_map=[0,1]")
        assert done.returncode == 0, done.stderr
        folder = max(root.glob("runs/2*/*"), key=lambda path: path.stat().st_mtime)
        summary = json.loads((folder / "summary.json").read_text())
        assert "val/teacher_agreement" in (folder / "metrics.jsonl").read_text()
        students.append((folder / "student.safetensors").read_bytes())
    assert summary["teacher_answers"] == {"read": 16, "computed": 0, "not_stored": 0}
    assert students[0] == students[1]


def test_a_student_is_distilled_from_an_exported_network(forms, root):
    done = program.train(root, *BASE, *CLASSES, *forms["pt2"], "teacher.cache=off")
    assert done.returncode == 0, done.stderr
    (summary,) = root.glob("runs/2*/*/summary.json")
    assert json.loads(summary.read_text())["teacher"]["val/miou"] is not None


def test_a_teacher_that_training_cannot_read_leaves_nothing(root):
    (root / "teacher.pt2").write_bytes(b"no archive")
    done = program.train(
        root, *BASE, "teacher=exported", "teacher.normalisation=none", f"teacher.path={root}/teacher.pt2"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: teacher.path=")
    assert done.stderr.count("\n") == 1
    assert not list(root.glob("runs/2*/*"))
