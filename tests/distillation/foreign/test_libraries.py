"""Networks of smp and torchvision are rebuilt from the library's code and a weights file."""

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
    """A copy of the saved network, for a test to modify."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved_once / name).read_bytes())
    return tmp_path


def logits_of(network: torch.nn.Module) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        return first(network(torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0))))


# smp


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_smp_network_is_loaded_without_its_activation(name, unet, saved):
    if name == "pytorch_model.bin":
        torch.save(unet.state_dict(), saved / name)
    body = smp_network(saved / name)
    assert body.parameters == sum(parameter.numel() for parameter in unet.parameters())
    torch.testing.assert_close(logits_of(body.run).softmax(1), logits_of(unet))
    assert logits_of(body.run).min() < 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_model_class": "encoders"}, "_model_class=encoders is not an architecture of smp"),
        ({"_model_class": "unet"}, "did you mean 'Unet'"),
        ({"_model_class": "os.system"}, "_model_class=os.system is not"),
        ({"encoder_name": "/tmp/encoder"}, "encoder=/tmp/encoder is not an encoder"),
        ({"encoder_name": "tu-hf-hub:nobody/nothing"}, "is not an encoder"),
        ({"encoder_name": "resnet18"}, "the weights do not match"),
        ({"classes": 4}, "the weights do not match"),
        ({"surprise": 1}, "surprise is not an argument of smp's Unet"),
        ({"self": 1}, "self is not an argument"),
        ({"kwargs": {}}, "kwargs is not an argument"),
        ({"decoder_channels": [10**9] * 5}, "decoder_channels: should be a short number"),
        ({"decoder_channels": [4096] * 5}, "decoder_channels: should be a short number"),
        ({"decoder_channels": [8] * 1000}, "decoder_channels: should be a short number"),
        ({"decoder_channels": [[8]] * 5}, "decoder_channels: should be a short number"),
        ({"decoder_channels": ["8"] * 5}, "smp cannot build this Unet"),
        ({"decoder_use_norm": {"type": "exec"}}, "smp cannot build this Unet"),
    ],
)
def test_an_invalid_smp_config_is_refused(change, says, saved):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=says):
        smp_network(saved / "model.safetensors")


def test_no_pretrained_weights_are_downloaded(saved):
    """Only the weights in the file are loaded."""
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_weights": "imagenet", "activation": "sigmoid"}))
    assert logits_of(smp_network(saved / "model.safetensors").run).min() < 0


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
def test_a_torchvision_network_is_loaded(name, lraspp, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(lraspp.state_dict(), tmp_path / name)
    body = torchvision_network("lraspp_mobilenet_v3_large", tmp_path / name)
    assert body.parameters == sum(parameter.numel() for parameter in lraspp.parameters())
    assert torch.equal(logits_of(body.run), logits_of(lraspp))


def test_the_auxiliary_head_is_left_out(tmp_path):
    torch.manual_seed(0)
    name = "deeplabv3_mobilenet_v3_large"
    with_head = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2, aux_loss=True)
    torch.save(with_head.state_dict(), tmp_path / "teacher.pth")
    network = torchvision_network(name, tmp_path / "teacher.pth").run
    assert network.aux_classifier is None
    assert torch.equal(logits_of(network), logits_of(with_head))


def test_an_unknown_torchvision_network_is_refused(tmp_path):
    for name in ("deeplabv3_resnet", "os.system", "resnet50", ""):
        with pytest.raises(ModelError, match=f"^teacher.model={name} is not a segmentation network of torchvision"):
            torchvision_network(name, tmp_path / "teacher.pth")


def test_weights_of_another_network_are_refused(lraspp, tmp_path):
    file = tmp_path / "teacher.pth"
    torch.save(lraspp.state_dict() | {"surprise": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"do not match the network .*1 unknown"):
        torchvision_network("lraspp_mobilenet_v3_large", file)
    torch.save({"classifier.4.weight": torch.zeros(1, 1, 1, 1).expand(10**9, 1, 1, 1)}, file)
    with pytest.raises(ModelError, match="has no weights of fcn_resnet50"):
        torchvision_network("fcn_resnet50", file)
    torch.save({"model": lraspp.state_dict()}, file)
    with pytest.raises(ModelError, match="a dict of tensors by name is needed"):
        torchvision_network("lraspp_mobilenet_v3_large", file)


def test_hostile_weights_of_torchvision_are_not_executed(tmp_path):
    (tmp_path / "teacher.pth").write_bytes(pickle.dumps({"classifier.4.weight": Trap(tmp_path)}, protocol=2))
    with pytest.raises(ModelError, match="calls posix mkdir, which weights do not need"):
        torchvision_network("fcn_resnet50", tmp_path / "teacher.pth")
    assert not (tmp_path / MARK).exists()
