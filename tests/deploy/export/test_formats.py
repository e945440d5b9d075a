"""An exported file answers as the network does, says what it is, and is there only if it is whole."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import onnx
import pytest
import torch
import yaml
from finished import balanced
from program import run_alone

from kd.config.compose import CONF
from kd.data import Shapes
from kd.data.loading import EvalLoader
from kd.data.source import spaced
from kd.deploy.export import Check, ExportError, OnnxNetwork, Session, Wanted, export, pictures
from kd.deploy.export.onnx_file import to_onnx
from kd.networks import build
from kd.networks.precision import Precision
from kd.settings import NetworkSettings
from kd.training.evaluation import evaluate

SIZE = (64, 64)
DATA = Shapes(image_size=SIZE, classes=3, train=12, val=6, test=3)
ABOUT = {"class_names": json.dumps(DATA.class_names), "run": "abc"}
STUDENTS = sorted(
    {tuple(yaml.safe_load(path.read_text())["student"].items()) for path in (CONF / "backbone").glob("*.yaml")}
)
CPU = Precision(torch.device("cpu"))


def network(arch="unet", encoder="tu-mobilenetv3_small_050"):
    torch.manual_seed(0)
    settings = NetworkSettings(arch=arch, encoder=encoder)
    return balanced(build.build(settings, DATA.classes, DATA.class_names, "backbone.student"), DATA)


def check_of(net):
    return Check.of(net, *pictures(DATA, SIZE))


@pytest.fixture(scope="module")
def tiny():
    return network()


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A folder with everything that can be exported, and what was found of each file."""
    out = tmp_path_factory.mktemp("export")
    found = export(tiny, SIZE, out / "student", Wanted(fp16=True, int8=True), check_of(tiny), ABOUT, DATA)
    return out, dict(found)


@pytest.mark.parametrize("student", STUDENTS, ids=lambda student: "-".join(map(str, dict(student).values())))
def test_the_onnx_file_of_every_shipped_student_answers_as_the_student_at_every_shape(student, tmp_path):
    named = dict(student)
    net = network(named["arch"], named["encoder"])
    model = to_onnx(net, SIZE, ABOUT)
    session = Session(model.SerializeToString())
    check = check_of(net)
    assert {tuple(batch.shape) for batch in check.batches} == {(6, 3, 64, 64), (1, 3, 64, 64), (1, 3, 96, 128)}
    assert check.difference(lambda images: torch.from_numpy(session(images.numpy()))).relative < 1e-4


def test_every_file_is_within_its_tolerance(exported):
    _, found = exported
    assert {name for name, figures in found.items() if figures["difference"]["relative"] < 1e-4} == {
        "student.onnx",
        "student.pt2",
        "student_smp",
    }
    assert 1e-5 < found["student.fp16.onnx"]["difference"]["relative"] < 2e-2


def test_nothing_but_whole_files_is_left(exported):
    out, found = exported
    assert {path.name for path in out.iterdir()} == {*found}
    assert sorted(path.name for path in (out / "student_smp").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_an_onnx_file_says_what_it_is_and_that_its_shapes_are_free(exported):
    out, _ = exported
    for name in ("student.onnx", "student.fp16.onnx", "student.int8.onnx"):
        model = onnx.load(out / name)
        onnx.checker.check_model(model)
        assert {each.key: each.value for each in model.metadata_props}.items() >= ABOUT.items()
        (given,) = model.graph.input
        assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == [
            "batch", 3, "height", "width",
        ]  # fmt: skip
        assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_half_precision_halves_the_file_and_eight_bits_quarter_it(exported):
    out, _ = exported
    whole, half, eight = ((out / f"student{kind}.onnx").stat().st_size for kind in ("", ".fp16", ".int8"))
    assert half < 0.6 * whole
    assert eight < 0.45 * whole


def test_the_miou_of_eight_bits_is_that_of_the_file_measured_again(exported, tiny):
    out, found = exported
    small = OnnxNetwork(out / "student.int8.onnx", DATA.class_names)
    for split in ("val", "test"):
        for who, net in (("int8", small), ("fp32", tiny)):
            again = evaluate(net, EvalLoader(DATA, split, 1), CPU, None).metrics(DATA.class_names)["miou"]
            assert found["student.int8.onnx"]["quality"][f"{split}/miou"][who] == pytest.approx(again, abs=1e-3)


def test_the_smp_folder_loads_in_the_two_lines_of_its_readme_without_this_package(exported, tiny, tmp_path):
    folder, images = exported[0] / "student_smp", check_of(tiny).batches[0]
    readme = (folder / "README.md").read_text()
    lines = readme.split("```python\n")[1].split("```")[0].replace("path/of/this/folder", str(folder))
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import numpy as np, torch, segmentation_models_pytorch as smp\n"
        f"images = torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"{lines}\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, logits.detach().numpy())\n"
    )
    run_alone(code, tmp_path)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), tiny(images), atol=1e-4, rtol=1e-4)


def test_a_program_loads_with_plain_torch_and_takes_any_batch_and_size(exported, tiny):
    said = {"about.json": ""}
    program = torch.export.load(exported[0] / "student.pt2", extra_files=said).module()
    images = torch.randint(0, 256, (3, 3, 64, 128), dtype=torch.uint8)
    torch.testing.assert_close(program(images), tiny(images), atol=1e-4, rtol=1e-4)
    assert json.loads(said["about.json"]) == ABOUT


def test_a_file_beyond_the_tolerance_never_appears(tiny, tmp_path):
    check = check_of(tiny)
    strict = replace(check, logits=tuple(logits + 0.1 for logits in check.logits))
    for form in ("onnx", "smp"):
        steps = export(tiny, SIZE, tmp_path / "student", Wanted((form,)), strict, ABOUT, DATA)
        with pytest.raises(ExportError, match="differ from the network's by"):
            list(islice(steps, 1))
        assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_is_told_from_a_right_one(tiny, tmp_path):
    check, other = check_of(tiny), network()
    other.body.segmentation_head[0].bias += 0.1
    assert check.passed(tmp_path, tiny).largest == 0
    assert check.difference(other).largest == pytest.approx(0.1, rel=1e-3)
    for wrong in (other, lambda images: tiny(images) * torch.nan, lambda images: tiny(images)[:, :1]):
        with pytest.raises(ExportError):
            check.passed(tmp_path, wrong)


def test_a_format_that_there_is_not_is_refused():
    with pytest.raises(ExportError, match="--format=tflite should be one or more of onnx, pt2, smp"):
        Wanted(("onnx", "tflite"))


def test_a_spread_begins_and_ends_with_its_range_and_takes_no_number_twice():
    assert spaced(6, 8) == [0, 1, 2, 3, 4, 5]
    assert spaced(9, 3) == [0, 4, 8]
    assert spaced(5, 1) == [0]


def test_where_the_data_is_gone_noise_is_said_to_be_noise():
    images, origin = pictures(None, SIZE)
    assert images.shape == (2, 3, *SIZE)
    assert "noise" in origin
    assert pictures(DATA, SIZE)[1] == "6 images of val"


def test_eight_bits_without_data_are_refused(tiny, tmp_path):
    wanted = Wanted((), int8=True)
    with pytest.raises(ExportError, match="--int8 needs images"):
        list(export(tiny, SIZE, tmp_path / "student", wanted, check_of(tiny), ABOUT))


def test_a_network_of_pictures_too_small_for_a_program_is_refused(tiny, tmp_path):
    with pytest.raises(ExportError, match="leave it out: --format=onnx,smp"):
        list(export(tiny, (32, 64), tmp_path / "student", Wanted(("pt2",)), check_of(tiny), ABOUT))


class Interrupting(Check):
    """A check during which somebody presses Ctrl-C."""

    def passed(self, *_):
        raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["onnx", "smp"])
def test_an_interrupted_export_leaves_what_was_there_and_nothing_half_written(tiny, tmp_path, form):
    (tmp_path / "student_smp").mkdir()
    for name in ("student.onnx", "student_smp/config.json"):
        (tmp_path / name).write_text("older")
    check = Interrupting(**vars(check_of(tiny)))
    with pytest.raises(KeyboardInterrupt):
        list(export(tiny, SIZE, tmp_path / "student", Wanted((form,)), check, ABOUT, DATA))
    assert {path.name for path in tmp_path.iterdir()} == {"student.onnx", "student_smp"}
    assert (tmp_path / "student.onnx").read_text() == (tmp_path / "student_smp" / "config.json").read_text() == "older"
