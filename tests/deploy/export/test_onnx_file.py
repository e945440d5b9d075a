"""An ONNX file gives the student's logits at every shape, and carries its metadata."""

import functools

import onnx
import pytest
import torch
import yaml
from exported import ABOUT, SIZE, check_of, network

from kd.config.compose import CONF
from kd.deploy.export import Session
from kd.deploy.export.onnx_file import to_onnx

NAMED = [yaml.safe_load(path.read_text())["student"] for path in sorted((CONF / "backbone").glob("*.yaml"))]
STUDENTS = sorted({(student["arch"], student["encoder"]) for student in NAMED})


#: The default student, and one that is no convolution.
QUICK = [("unet", "tu-tf_efficientnet_lite0"), ("segformer", "mit_b0")]


@functools.cache
def converted(arch, encoder):
    net = network(arch, encoder)
    return net, to_onnx(net, SIZE, ABOUT)


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [each if each in QUICK else pytest.param(*each, marks=pytest.mark.slow) for each in STUDENTS],
)
def test_every_shipped_student_gives_the_same_logits_as_onnx_at_every_shape(arch, encoder):
    net, model = converted(arch, encoder)
    session = Session(model.SerializeToString())
    difference = check_of(net).difference(lambda images: torch.from_numpy(session(images.numpy())))
    assert difference.relative < 1e-4


def test_padding_is_not_computed_from_the_size():
    """Converters for phones reject Ceil, and cannot use a Pad whose widths are computed."""
    _, model = converted("unet", "tu-tf_efficientnet_lite0")
    assert "Ceil" not in {node.op_type for node in model.graph.node}


def test_an_onnx_file_has_its_metadata_and_free_shapes(exported):
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
