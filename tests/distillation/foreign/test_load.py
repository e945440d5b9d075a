"""A teacher from elsewhere teaches as ours do: the same answers from each form of a network, cached or not."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import program
import pytest
import torch
from torch import nn
from toy import CPU, hand_made
from traps import MARK, old_trap, trap

from kd.config.compose import compose, plain
from kd.config.read import checked
from kd.data.loading import Batch
from kd.distillation.foreign.files import find
from kd.distillation.foreign.network import Foreign
from kd.distillation.teacher import CachedTeacher, LiveTeacher
from kd.errors import ConfigError, ModelError
from kd.experiment.builders import build_train_loader
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.teacher_cache import build_teacher
from kd.experiment.teacher_network import teacher_network
from kd.experiment.teacher_training import obtain
from kd.networks import build
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from tests.distillation.foreign.test_onnx_file import apart

BASE = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=8", "data.val=4", "data.test=4", "trainer.batch_size=4",
    "trainer.epochs=1", "trainer.device=cpu", "unfreeze=all", "tracking=none", "augment=none",
]  # fmt: skip
SMP, EXPORTED = ("smp", "smp of torch"), ("pt2", "onnx", "onnx of TorchScript")
KEPT = {"cache": "auto", "cache_gb": 1}


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """The configuration but for the teacher; composing one takes a moment."""
    return plain(compose(BASE))


@pytest.fixture
def bench(usual, root):
    """What makes a bench of a teacher's settings and a number of classes."""

    def of(teacher: dict[str, Any], classes: int = 1, **data: Any) -> RunContext:
        given = usual["data"] | {"classes": classes} | data
        return RunContext.of(checked(usual | {"root": root, "data": given, "teacher": teacher}), [])

    return of


@pytest.fixture
def built(bench):
    """What builds the network of a teacher."""

    def of(*asked: Any, **data: Any) -> tuple[RunContext, Foreign]:
        on = bench(*asked, **data)
        return on, teacher_network(on, find(on.settings.teacher))

    return of


def teacher(kind: str, path: Path | str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "normalisation": "imagenet", "class_map": None, **KEPT, **more}


def batch(count=4) -> Batch:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(1))
    return Batch(images, torch.zeros(count, 32, 32, dtype=torch.uint8), torch.arange(count), 0)


def settled(made: Network) -> Network:
    """A network whose batch norms have seen something."""
    made.train()
    with torch.no_grad():
        for _ in range(3):
            made(batch().images)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours() -> Network:
    """A network of ours, of three classes."""
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    return settled(build.build(settings, 3, ("a", "b", "c"), "backbone.teacher"))


@pytest.fixture(scope="module")
def simple() -> Network:
    """A network of one logit that takes no time to export."""
    return settled(hand_made(seed=1))


@pytest.fixture(scope="module")
def forms(ours, simple, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """These two in every form, as settings of a teacher."""
    root, example = tmp_path_factory.mktemp("forms"), torch.rand(2, 3, 32, 32)
    ours.body.save_pretrained(root / "smp")
    shutil.copytree(root / "smp", root / "bin")
    (root / "bin" / "model.safetensors").unlink()
    torch.save(ours.body.state_dict(), root / "bin" / "pytorch_model.bin")
    dynamic = {0: torch.export.Dim.DYNAMIC}
    torch.export.save(torch.export.export(simple.body, (example,), dynamic_shapes=(dynamic,)), root / "teacher.pt2")
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that TorchScript needs
        torch.onnx.export(simple.body, (example,), root / "teacher.onnx", **axes)
        torch.jit.save(torch.jit.trace(simple.body, example), root / "teacher.ts")
        torch.onnx.export(torch.jit.load(root / "teacher.ts"), (example,), root / "script.onnx", **axes)
    return {
        "smp": teacher("smp", root / "smp"),
        "smp of torch": teacher("smp", root / "bin"),
        "pt2": teacher("exported", root / "teacher.pt2"),
        "onnx": teacher("exported", root / "teacher.onnx"),
        "onnx of TorchScript": teacher("exported", root / "script.onnx"),
    }


# the same answers


@pytest.mark.parametrize("form", [*SMP, *EXPORTED])
def test_a_network_teaches_alike_in_every_form(form, ours, simple, forms, built):
    same = ours if form in SMP else simple
    on, found = built(forms[form], same.classes)
    answers = LiveTeacher(found, on.precision)(batch())
    torch.testing.assert_close(answers, LiveTeacher(same, on.precision)(batch()), rtol=2e-3, atol=2e-3)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if "onnx" not in form:  # where the exporter has merged batch norms into convolutions
        assert found.count_parameters() == same.count_parameters()


@pytest.mark.parametrize("form", [*SMP, *EXPORTED])
def test_a_network_answers_in_the_precision_of_the_run(form, ours, simple, forms, built):
    same = ours if form in SMP else simple
    _, found = built(forms[form], same.classes)
    halves = LiveTeacher(found, Precision(CPU.device, "bf16"))(batch())
    exact = LiveTeacher(same, CPU)(batch())
    torch.testing.assert_close(halves, exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


def test_a_map_gives_the_classes_of_the_data_their_channels(ours, forms, built):
    _, plainly = built(forms["smp"], 3)
    _, turned = built(forms["smp"] | {"class_map": [2, 0, 1]}, 3)
    _, binary = built(forms["smp"] | {"class_map": [2, 0]}, 1)
    images = batch().images
    with torch.no_grad():
        answer = plainly(images)
        torch.testing.assert_close(turned(images), answer[:, [2, 0, 1]])
        torch.testing.assert_close(binary(images), answer[:, 0:1] - answer[:, 2:3])


def test_a_map_that_is_missing_is_asked_for_when_the_file_is_read(forms, built, bench):
    with pytest.raises(ConfigError, match=r"gives 1 channels, the data has 3 classes .*teacher.class_map="):
        built(forms["pt2"], 3)
    with pytest.raises(ConfigError, match=r"gives 3 channels, the data has 2 classes .*teacher.class_map="):
        bench(forms["smp"])


def test_a_file_of_another_size_is_refused(forms, built):
    with pytest.raises(ModelError, match=r"data.image_size=\[32, 32\]"):
        built(forms["pt2"], image_size=[64, 64])


# what is executed


def test_pickles_in_the_place_of_a_network_are_not_executed(built, tmp_path):
    for name in ("teacher.onnx", "teacher.pt2"):
        for write in (trap, old_trap):
            write(tmp_path / name)
            with pytest.raises(ModelError, match=r"^teacher\.path="):
                built(teacher("exported", tmp_path / name))
    assert not (tmp_path / MARK).exists()


class Writes(nn.Module):
    """TorchScript that saves a file where it is loaded."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    @torch.jit.export
    def __getstate__(self) -> str:
        return self.mark

    @torch.jit.export
    def __setstate__(self, mark: str) -> None:
        torch.save(torch.zeros(1), mark)
        self.mark = mark
        self.training = False

    def forward(self, x):
        return x


def test_torchscript_executes_what_it_says_while_it_is_loaded_and_is_refused(built, tmp_path):
    """Why no file of it is loaded (docs/adr/0011)."""
    mark = tmp_path / "written"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Writes(str(mark))), tmp_path / "teacher.pt")
        for name in ("teacher.pt", "teacher.ts", "teacher.pt2", "teacher.onnx"):  # whatever its name
            if name != "teacher.pt":
                shutil.copy(tmp_path / "teacher.pt", tmp_path / name)
            with pytest.raises(ModelError, match=r"^teacher\.path="):
                built(teacher("exported", tmp_path / name))
        assert not mark.exists()
        torch.jit.load(tmp_path / "teacher.pt")
    assert mark.exists()


# what its answers follow from


@pytest.fixture
def folder_of(bench):
    """What tells the name of the folder in which a teacher's answers are kept."""

    def of(teacher: dict[str, Any], classes: int = 1) -> str:
        on = bench(teacher, classes)
        return build_teacher(on, find(on.settings.teacher), 2).answers.folder.name

    return of


CHANGES = [
    {"class_map": [1, 0]},
    {"normalisation": "none"},
    {"normalisation": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "scale": 255}},
]


@pytest.mark.parametrize("form", ["smp", "onnx"])
def test_the_answers_of_each_mapping_and_normalisation_are_kept_apart(form, forms, folder_of):
    usual = forms[form] | ({"class_map": [0, 1]} if form == "smp" else {})
    names = [folder_of(usual), *(folder_of(usual | change) for change in CHANGES)]
    assert len(set(names)) == 1 + len(CHANGES)
    assert folder_of(usual | {"cache_gb": 2}) == names[0]


def test_the_answers_of_a_copy_are_the_same_and_those_of_another_network_are_not(forms, folder_of, tmp_path):
    shutil.copytree(forms["smp"]["path"], tmp_path / "copy")
    copy = teacher("smp", tmp_path / "copy")
    assert folder_of(copy, 3) == folder_of(forms["smp"], 3)
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_interpolation": "bilinear"}))
    assert folder_of(copy, 3) != folder_of(forms["smp"], 3)


def test_the_answers_of_a_file_in_pieces_follow_from_each(folder_of, tmp_path):
    network, names = nn.Conv2d(3, 16, 5, stride=2, padding=2), []
    for bias in (0.0, 1.0):
        nn.init.constant_(network.weight, 0)
        nn.init.constant_(network.bias, bias)
        (tmp_path / "teacher.data").unlink(missing_ok=True)
        apart(network, tmp_path / "teacher.onnx")
        names.append(folder_of(teacher("exported", tmp_path / "teacher.onnx")))
    assert names[0] != names[1]


# as ours


@pytest.mark.parametrize("form", ["smp", "pt2", "onnx"])
def test_a_foreign_teacher_is_measured_once_and_its_answers_are_kept(form, forms, bench):
    """Live, computed for the cache and read from it: the same bits."""
    asked = forms[form], 3 if form == "smp" else 1
    on = bench(*asked)
    known = obtain(Evaluator(on))
    assert {f"val/iou/{name}" for name in on.data.class_names} <= known.metrics.keys()
    assert obtain(Evaluator(bench(*asked))).metrics == known.metrics
    live = build_teacher(bench(forms[form] | {"cache": "off"}, asked[1]), known.file, 2)
    for reading in (False, True):
        kept = build_teacher(on, known.file, 2)
        assert isinstance(kept, CachedTeacher)
        for one in build_train_loader(on, 0, kept.answers).epoch(0):
            assert torch.equal(kept(one), live(one))
        assert kept.counts()["read"] == (8 if reading else 0)


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ("smp", ["teacher=smp", "teacher.class_map=[0,2]"]),
        ("onnx", ["teacher=exported", "teacher.normalisation=imagenet", "teacher.cache=off"]),
    ],
)
def test_a_student_is_distilled_from_a_foreign_teacher(form, more, forms, root):
    done = program.train(root, *BASE, *more, f"teacher.path={forms[form]['path']}")
    assert done.returncode == 0, done.stderr
    (summary,) = root.glob("runs/2*/*/summary.json")
    assert json.loads(summary.read_text())["teacher"]["val/miou"] is not None
    assert "teacher_agreement" in (summary.parent / "metrics.jsonl").read_text()
