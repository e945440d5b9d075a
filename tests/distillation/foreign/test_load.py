"""A foreign teacher works like our own: the same logits from every file format, cached or not."""

import json
import shutil
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import program
import pytest
import torch
from torch import nn
from toy import CPU, hand_made
from traps import MARK, Trap, old_trap, trap

from kd.config.compose import compose, plain
from kd.config.read import checked
from kd.data.batches.batch import Batch
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
SMP, EXPORTED = ("smp", "smp, pytorch_model.bin"), ("onnx", "onnx from TorchScript")
KEPT = {"cache": "auto", "cache_gb": 1}


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """The configuration without the teacher, composed once."""
    return plain(compose(BASE))


@pytest.fixture
def context_of(usual, root):
    """Builds a context from a teacher's settings and a number of classes."""

    def of(teacher: dict[str, Any], classes: int = 1, **data: Any) -> RunContext:
        given = usual["data"] | {"classes": classes} | data
        return RunContext.of(checked(usual | {"root": root, "data": given, "teacher": teacher}), [])

    return of


@pytest.fixture
def built(context_of):
    """Builds a teacher's context and network."""

    def of(*asked: Any, **data: Any) -> tuple[RunContext, Foreign]:
        context = context_of(*asked, **data)
        return context, teacher_network(context, find(context.settings.teacher))

    return of


def teacher(kind: str, path: Path | str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "normalisation": "imagenet", "class_map": None, **KEPT, **more}


def batch(count=4) -> Batch:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(1))
    return Batch(images, torch.zeros(count, 32, 32, dtype=torch.uint8), torch.arange(count), 0)


def settled(made: Network) -> Network:
    """A network whose batch-norm statistics are no longer the initial ones."""
    made.train()
    with torch.no_grad():
        for _ in range(3):
            made(batch().images)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours() -> Network:
    """A network of this project with three classes."""
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    return settled(build.build(settings, 3, ("a", "b", "c"), "backbone.teacher"))


@pytest.fixture(scope="module")
def simple() -> Network:
    """A network with one logit that is fast to export."""
    return settled(hand_made(seed=1))


@pytest.fixture(scope="module")
def forms(ours, simple, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Teacher settings for these two networks in every file format."""
    root, example = tmp_path_factory.mktemp("forms"), torch.rand(2, 3, 32, 32)
    ours.body.save_pretrained(root / "smp")
    shutil.copytree(root / "smp", root / "bin")
    (root / "bin" / "model.safetensors").unlink()
    torch.save(ours.body.state_dict(), root / "bin" / "pytorch_model.bin")
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated
        torch.onnx.export(simple.body, (example,), root / "teacher.onnx", **axes)
        torch.jit.save(torch.jit.trace(simple.body, example), root / "teacher.ts")
        torch.onnx.export(torch.jit.load(root / "teacher.ts"), (example,), root / "script.onnx", **axes)
    return {
        "smp": teacher("smp", root / "smp"),
        "smp, pytorch_model.bin": teacher("smp", root / "bin"),
        "onnx": teacher("exported", root / "teacher.onnx"),
        "onnx from TorchScript": teacher("exported", root / "script.onnx"),
    }


# the same logits


@pytest.mark.parametrize("form", [*SMP, *EXPORTED])
def test_every_file_format_gives_the_same_logits(form, ours, simple, forms, built):
    same = ours if form in SMP else simple
    context, found = built(forms[form], same.classes)
    logits = LiveTeacher(found, context.precision)(batch())[0]
    torch.testing.assert_close(logits, LiveTeacher(same, context.precision)(batch())[0], rtol=2e-3, atol=2e-3)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if "onnx" not in form:  # its exporter merges batch norms into convolutions
        assert found.count_parameters() == same.count_parameters()


@pytest.mark.parametrize("form", [*SMP, *EXPORTED])
def test_a_foreign_teacher_computes_in_the_precision_of_the_run(form, ours, simple, forms, built):
    same = ours if form in SMP else simple
    _, found = built(forms[form], same.classes)
    halves = LiveTeacher(found, Precision(CPU.device, "bf16"))(batch())[0]
    exact = LiveTeacher(same, CPU)(batch())[0]
    torch.testing.assert_close(halves, exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


def test_the_class_map_selects_the_channels_of_the_classes(ours, forms, built):
    _, plain_network = built(forms["smp"], 3)
    _, permuted = built(forms["smp"] | {"class_map": [2, 0, 1]}, 3)
    _, binary = built(forms["smp"] | {"class_map": [2, 0]}, 1)
    images = batch().images
    with torch.no_grad():
        logits = plain_network(images)
        torch.testing.assert_close(permuted(images), logits[:, [2, 0, 1]])
        torch.testing.assert_close(binary(images), logits[:, 0:1] - logits[:, 2:3])


def test_a_missing_class_map_is_reported_when_the_file_is_read(forms, built, context_of):
    with pytest.raises(ConfigError, match=r"has 1 channels, the data has 3 classes .*teacher.class_map="):
        built(forms["onnx"], 3)
    with pytest.raises(ConfigError, match=r"has 3 channels, the data has 2 classes .*teacher.class_map="):
        context_of(forms["smp"])


def test_a_file_exported_for_another_size_is_refused(forms, built):
    with pytest.raises(ModelError, match=r"'data.image_size=\[32,32\]'"):
        built(forms["onnx"], image_size=[64, 64])


# nothing in a file is executed


def test_a_pickle_named_like_a_network_is_not_executed(built, tmp_path):
    for name in ("teacher.onnx", "teacher.pt2"):
        for write in (trap, old_trap):
            write(tmp_path / name)
            with pytest.raises(ModelError, match=r"^teacher\.path="):
                built(teacher("exported", tmp_path / name))
    assert not (tmp_path / MARK).exists()


class Writes(nn.Module):
    """TorchScript that writes a file when it is loaded."""

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


def test_torchscript_executes_code_when_loaded_and_is_refused(built, tmp_path):
    """The reason why TorchScript is never loaded (docs/adr/0011)."""
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


def test_torch_export_executes_a_pickle_when_loaded_and_is_refused(simple, built, tmp_path):
    """The reason why .pt2 files are never loaded (docs/adr/0011)."""
    torch.export.save(torch.export.export(simple.body, (torch.rand(2, 3, 32, 32),)), tmp_path / "plain.pt2")
    torch.save(((Trap(tmp_path),), {}), tmp_path / "inputs")
    with zipfile.ZipFile(tmp_path / "plain.pt2") as plain, zipfile.ZipFile(tmp_path / "teacher.pt2", "w") as hostile:
        for name in plain.namelist():
            hostile.writestr(name, (tmp_path / "inputs").read_bytes() if "sample_inputs" in name else plain.read(name))
    with pytest.raises(ModelError, match=r"^teacher\.path=.*torch\.onnx\.export"):
        built(teacher("exported", tmp_path / "teacher.pt2"))
    assert not (tmp_path / MARK).exists()
    with suppress(Exception):  # it fails after executing the pickle
        torch.export.load(tmp_path / "teacher.pt2")
    assert (tmp_path / MARK).exists()


# the cache key


@pytest.fixture
def folder_of(context_of):
    """Returns the name of the folder in which a teacher's logits are cached."""

    def of(teacher: dict[str, Any], classes: int = 1) -> str:
        context = context_of(teacher, classes)
        return build_teacher(context, find(context.settings.teacher), 2).caches["train"][0].folder.name

    return of


CHANGES = [
    {"class_map": [1, 0]},
    {"normalisation": "none"},
    {"normalisation": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "scale": 255}},
]


@pytest.mark.parametrize("form", ["smp", "onnx"])
def test_each_class_map_and_normalisation_has_its_own_cache(form, forms, folder_of):
    usual = forms[form] | ({"class_map": [0, 1]} if form == "smp" else {})
    names = [folder_of(usual), *(folder_of(usual | change) for change in CHANGES)]
    assert len(set(names)) == 1 + len(CHANGES)
    assert folder_of(usual | {"cache_gb": 2}) == names[0]


def test_a_copy_shares_the_cache_and_another_network_does_not(forms, folder_of, tmp_path):
    shutil.copytree(forms["smp"]["path"], tmp_path / "copy")
    copy = teacher("smp", tmp_path / "copy")
    assert folder_of(copy, 3) == folder_of(forms["smp"], 3)
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_interpolation": "bilinear"}))
    assert folder_of(copy, 3) != folder_of(forms["smp"], 3)


def test_the_cache_key_depends_on_external_data(folder_of, tmp_path):
    network, names = nn.Conv2d(3, 16, 5, stride=2, padding=2), []
    for bias in (0.0, 1.0):
        nn.init.constant_(network.weight, 0)
        nn.init.constant_(network.bias, bias)
        (tmp_path / "teacher.data").unlink(missing_ok=True)
        apart(network, tmp_path / "teacher.onnx")
        names.append(folder_of(teacher("exported", tmp_path / "teacher.onnx")))
    assert names[0] != names[1]


# end to end


@pytest.mark.parametrize("form", ["smp", "onnx"])
def test_a_foreign_teacher_is_measured_once_and_its_logits_are_cached(form, forms, context_of):
    """Live, computed for the cache and read from it: the same bits."""
    asked = forms[form], 3 if form == "smp" else 1
    context = context_of(*asked)
    measured = obtain(Evaluator(context))
    assert {f"val/iou/{name}" for name in context.data.class_names} <= measured.metrics.keys()
    assert obtain(Evaluator(context_of(*asked))).metrics == measured.metrics
    live = build_teacher(context_of(forms[form] | {"cache": "off"}, asked[1]), measured.file, 2)
    for reading in (False, True):
        cached = build_teacher(context, measured.file, 2)
        assert isinstance(cached, CachedTeacher)
        for one in build_train_loader(context, 0, cached.caches).epoch(0):
            assert torch.equal(cached(one)[0], live(one)[0])
        assert cached.counts()["read"] == (8 if reading else 0)


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
