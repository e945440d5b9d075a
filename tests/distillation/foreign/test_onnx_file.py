"""An ONNX file gives the logits of the network it was exported from, and reads no file outside its folder."""

import pytest
import torch
from onnx import TensorProto, checker, helper, numpy_helper, save
from torch import nn
from traps import MARK, trap

from kd.distillation.foreign.network import Foreign, probe
from kd.distillation.foreign.onnx_file import external_files, onnx_network
from kd.errors import ModelError
from kd.settings import NORMALISATIONS, Normalisation

CPU = torch.device("cpu")
ANY = ("batch", 3, "height", "width")


@pytest.fixture(scope="module")
def network():
    """A convolution that halves the image; 1216 parameters, enough for ONNX to use external data."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 16, 5, stride=2, padding=2).eval()


def model(network: nn.Conv2d, takes=ANY, kind=TensorProto.FLOAT, domain="", inputs=("pictures",)):
    """The same as an ONNX model."""
    dtype = torch.float16 if kind == TensorProto.FLOAT16 else torch.float32
    values = [(name, value.detach().to(dtype).numpy()) for name, value in network.named_parameters()]
    names = [inputs[0], *(name for name, _ in values)]
    conv = helper.make_node("Conv", names, ["logits"], domain=domain, strides=[2, 2], pads=[2, 2, 2, 2])
    graph = helper.make_graph(
        [conv],
        "teacher",
        [helper.make_tensor_value_info(name, kind, takes) for name in inputs],
        [helper.make_tensor_value_info("logits", kind, (None, 16, None, None))],
        [numpy_helper.from_array(value, name) for name, value in values],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def pictures(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.manual_seed(0))


# the same logits


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 16, 48)])
@torch.no_grad()
def test_an_onnx_file_gives_the_logits_of_its_network(shape, network, tmp_path):
    checker.check_model(model(network))
    save(model(network), tmp_path / "teacher.onnx")
    body = onnx_network(tmp_path / "teacher.onnx", CPU)
    assert body.takes == (None, None, None)
    assert body.parameters == sum(parameter.numel() for parameter in network.parameters())
    torch.testing.assert_close(body.run(pictures(*shape)), network(pictures(*shape)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_file_in_half_precision_gets_half_precision_input(network, tmp_path):
    save(model(network, kind=TensorProto.FLOAT16), tmp_path / "teacher.onnx")
    answer = onnx_network(tmp_path / "teacher.onnx", CPU).run(pictures(1, 3, 16, 16))
    torch.testing.assert_close(answer.float(), network(pictures(1, 3, 16, 16)), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_a_file_with_fixed_sizes_takes_only_those(network, tmp_path):
    save(model(network, takes=(2, 3, 32, 64)), tmp_path / "teacher.onnx")
    body = onnx_network(tmp_path / "teacher.onnx", CPU)
    assert body.takes == (2, 32, 64)
    names = tuple(f"class_{number}" for number in range(16))
    foreign = Foreign(body, Normalisation(**NORMALISATIONS["none"]), 16, names)
    images = torch.randint(0, 256, (3, 3, 32, 64), dtype=torch.uint8)
    torch.testing.assert_close(foreign.raw(images), network(images / 255), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"32 x 64.*'data.image_size=\[32,64\]'"):
        probe(foreign, (64, 64), "teacher.path=x")


# external data


def apart(network, path, location="teacher.data"):
    """Save the model with external data."""
    path.parent.mkdir(exist_ok=True)
    save(model(network), path, save_as_external_data=True, location=location, size_threshold=0)


@torch.no_grad()
def test_external_data_in_the_same_folder_is_read(network, tmp_path):
    apart(network, tmp_path / "teacher.onnx")
    assert external_files(tmp_path / "teacher.onnx") == (tmp_path / "teacher.data",)
    answer = onnx_network(tmp_path / "teacher.onnx", CPU).run(pictures(1, 3, 16, 16))
    torch.testing.assert_close(answer, network(pictures(1, 3, 16, 16)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", "gone", "."])
def test_external_data_outside_the_folder_is_not_read(location, network, tmp_path):
    path = tmp_path / "teacher" / "teacher.onnx"
    apart(network, path)
    (tmp_path / "secret").write_bytes((path.parent / "teacher.data").read_bytes())
    hostile = model(network)
    for tensor in hostile.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    path.write_bytes(hostile.SerializeToString())
    with pytest.raises(ModelError, match="not a file in its folder"):
        onnx_network(path, CPU)


def test_external_data_behind_a_link_out_of_the_folder_is_not_read(network, tmp_path):
    path = tmp_path / "teacher" / "teacher.onnx"
    apart(network, path)
    data = path.parent / "teacher.data"
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="not a file in its folder"):
        onnx_network(path, CPU)


# refused files


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"takes": ("batch", 32, 32, 3)}, "inputs are pictures: .*batch x 3 x height x width"),
        ({"takes": ("batch", 3)}, "onnxruntime cannot run it"),
        ({"inputs": ("pictures", "sizes")}, "inputs are pictures.*sizes"),
        ({"domain": "com.somebody"}, "onnxruntime cannot run it"),
    ],
)
def test_a_network_with_other_inputs_is_refused(change, says, network, tmp_path):
    save(model(network, **change), tmp_path / "teacher.onnx")
    with pytest.raises(ModelError, match=rf"^teacher\.path=.*{says}") as raised:
        onnx_network(tmp_path / "teacher.onnx", CPU)
    assert "\n" not in str(raised.value)


def test_damaged_and_hostile_files_are_refused_and_not_executed(network, tmp_path):
    path = tmp_path / "teacher.onnx"
    save(model(network), path)
    whole = path.read_bytes()
    trap(path)
    for content in (path.read_bytes(), whole[: len(whole) // 2], b"", b"no network", whole[::-1]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"^teacher\.path=") as raised:
            onnx_network(path, CPU)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / MARK).exists()
