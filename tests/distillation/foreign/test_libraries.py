"""Networks of smp and torchvision: the library's own code and a file of weights give the network that was saved."""

import json
import pickle

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import save_file
from traps import MARK, Trap, bomb, old_trap, trap

from kd.distillation.foreign.libraries import smp_network, torchvision_network
from kd.distillation.foreign.network import first
from kd.errors import ModelError

ENCODER = "tu-mobilenetv3_small_050"


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return smp.Unet(
        ENCODER, encoder_weights=None, classes=3, activation="softmax2d", decoder_channels=(32, 16, 16, 8, 8)
    )


@pytest.fixture(scope="module")
def saved_once(unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smp")
    unet.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A network of smp, saved, to spoil."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved_once / name).read_bytes())
    return tmp_path


def answer(network: torch.nn.Module) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        return first(network(torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0))))


# smp


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_network_of_smp_is_the_one_that_was_saved_without_its_activation(name, unet, saved):
    if name == "pytorch_model.bin":
        torch.save(unet.state_dict(), saved / name)
    body = smp_network(saved / name)
    assert body.parameters == sum(parameter.numel() for parameter in unet.parameters())
    torch.testing.assert_close(answer(body.run).softmax(1), answer(unet))
    assert answer(body.run).min() < 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_model_class": "encoders"}, "_model_class=encoders is not an architecture of smp"),
        ({"_model_class": "unet"}, "did you mean 'Unet'"),
        ({"_model_class": "os.system"}, "_model_class=os.system is not"),
        ({"encoder_name": "/tmp/encoder"}, "encoder=/tmp/encoder is not an encoder"),
        ({"encoder_name": "tu-hf-hub:nobody/nothing"}, "is not an encoder"),
        ({"encoder_name": "resnet18"}, "the weights do not fit"),
        ({"classes": 4}, "the weights do not fit"),
        ({"surprise": 1}, "surprise is no argument of smp's Unet"),
        ({"self": 1}, "self is no argument"),
        ({"kwargs": {}}, "kwargs is no argument"),
        ({"decoder_channels": [10**9] * 5}, "decoder_channels: should be a short number"),
        ({"decoder_channels": [8] * 1000}, "decoder_channels: should be a short number"),
        ({"decoder_channels": [[8]] * 5}, "decoder_channels: should be a short number"),
        ({"decoder_channels": ["8"] * 5}, "smp cannot build this Unet"),
        ({"decoder_use_norm": {"type": "exec"}}, "smp cannot build this Unet"),
    ],
)
def test_a_description_of_smp_that_is_none_is_refused(change, says, saved):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=says):
        smp_network(saved / "model.safetensors")


def test_weights_that_smp_would_fetch_are_not(saved):
    """Those of the file are all that counts."""
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_weights": "imagenet", "activation": "sigmoid"}))
    assert answer(smp_network(saved / "model.safetensors").run).min() < 0


@pytest.mark.parametrize("write", [trap, old_trap, bomb, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_and_hostile_weights_are_refused_and_not_executed(write, name, saved):
    (saved / name).unlink(missing_ok=True)
    write(saved / name)
    with pytest.raises(ModelError, match=name):
        smp_network(saved / name)
    assert not (saved / MARK).exists()


# torchvision


@pytest.fixture(scope="module")
def lraspp():
    torch.manual_seed(0)
    return torchvision.models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=5)


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
def test_a_network_of_torchvision_is_the_one_that_was_saved(name, lraspp, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(lraspp.state_dict(), tmp_path / name)
    body = torchvision_network("lraspp_mobilenet_v3_large", tmp_path / name)
    assert body.parameters == sum(parameter.numel() for parameter in lraspp.parameters())
    assert torch.equal(answer(body.run), answer(lraspp))


def test_the_head_that_only_trains_is_left_out(tmp_path):
    torch.manual_seed(0)
    name = "deeplabv3_mobilenet_v3_large"
    with_head = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2, aux_loss=True)
    torch.save(with_head.state_dict(), tmp_path / "teacher.pth")
    network = torchvision_network(name, tmp_path / "teacher.pth").run
    assert network.aux_classifier is None
    assert torch.equal(answer(network), answer(with_head))


def test_a_network_that_torchvision_does_not_have_is_refused(tmp_path):
    for name in ("deeplabv3_resnet", "os.system", "resnet50", ""):
        with pytest.raises(ModelError, match=f"^teacher.model={name} is not a segmentation network of torchvision"):
            torchvision_network(name, tmp_path / "teacher.pth")


def test_weights_of_another_network_are_refused(lraspp, tmp_path):
    file = tmp_path / "teacher.pth"
    torch.save(lraspp.state_dict() | {"surprise": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"do not fit the network .*1 unknown"):
        torchvision_network("lraspp_mobilenet_v3_large", file)
    torch.save({"classifier.4.weight": torch.zeros(1, 1, 1, 1).expand(10**9, 1, 1, 1)}, file)
    with pytest.raises(ModelError, match="holds no weights of fcn_resnet50"):
        torchvision_network("fcn_resnet50", file)
    torch.save({"model": lraspp.state_dict()}, file)
    with pytest.raises(ModelError, match="a dict of tensors by name is needed"):
        torchvision_network("lraspp_mobilenet_v3_large", file)


def test_hostile_weights_of_torchvision_are_not_executed(tmp_path):
    (tmp_path / "teacher.pth").write_bytes(pickle.dumps({"classifier.4.weight": Trap(tmp_path)}, protocol=2))
    with pytest.raises(ModelError, match="not a plain state dict"):
        torchvision_network("fcn_resnet50", tmp_path / "teacher.pth")
    assert not (tmp_path / MARK).exists()
