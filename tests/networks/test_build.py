"""Laws of building networks. Every refusal is one line, and nothing in a file is executed."""

import pickle

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from traps import MARK, Trap, old_trap, trap

from kd.errors import ModelError
from kd.networks import build, saved
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings

BINARY, FORMS = ("background", "foreground"), ("background", "star", "ring")
SMALL, RESNET = "tu-mobilenetv3_small_050", "resnet18"


def built(encoder=SMALL, arch="unet", weights=None, seed=0, names=BINARY, key="backbone.student"):
    torch.manual_seed(seed)
    classes = 1 if names == BINARY else len(names)
    return build.build(NetworkSettings(arch=arch, encoder=encoder, weights=weights), classes, names, key)


def pictures():
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(network):
    return network.eval()(pictures())


def same_state(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(call, *args, **kwargs) -> str:
    """The message of the ModelError that a call raises, which is one line."""
    with pytest.raises(ModelError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# building


@pytest.mark.parametrize("encoder", [SMALL, RESNET])
def test_a_network_follows_from_torchs_seed(encoder):
    assert same_state(built(encoder, seed=3), built(encoder, seed=3))
    assert not same_state(built(encoder, seed=3), built(encoder, seed=4))


def test_a_network_equals_smps():
    ours = built(RESNET, names=FORMS)
    theirs = smp.Unet(RESNET, encoder_weights=None, classes=3)
    assert {n: v.shape for n, v in ours.body.state_dict().items()} == {
        n: v.shape for n, v in theirs.state_dict().items()
    }
    theirs.load_state_dict(ours.body.state_dict())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = theirs.eval()((pictures() / 255 - mean) / std)
    torch.testing.assert_close(logits_of(ours), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("names", "channels"), [(BINARY, 1), (FORMS, 3), (("a", "b"), 2)])
def test_there_is_one_logit_per_class_or_one_for_binary(names, channels):
    network = built(names=names)
    assert logits_of(network).shape == (2, channels, 32, 32)
    assert (network.classes, network.class_names) == (channels, names)


def test_architectures_are_smps_in_any_case():
    assert set(build.ARCHITECTURES.values()) <= set(dir(smp))
    assert same_state(built(arch="unet"), built(arch="Unet"))


def test_a_random_network_has_torchs_default_batch_norm_momentum():
    norms = [m for m in built("efficientnet-b0").modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {norm.momentum for norm in norms} == {nn.BatchNorm2d(1).momentum}


def test_an_unknown_architecture_is_named_with_the_nearest():
    message = refusal(built, arch="unett", key="backbone.teacher")
    assert message == "backbone.teacher.arch=unett is not an architecture; did you mean 'unet'?"


@pytest.mark.parametrize(
    ("encoder", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("eficientnet-b0", "efficientnet-b0"),
        ("ResNet18", "resnet18"),
        ("tu-resnet81", "tu-resnet18"),
        ("tu-mobilenetv3_smal_050", SMALL),
    ],
)
def test_an_unknown_encoder_is_named_with_the_nearest(encoder, nearest):
    message = refusal(built, encoder)
    assert message.startswith(f"backbone.student.encoder={encoder} is not an encoder")
    assert f"did you mean '{nearest}'?" in message


def test_a_pair_that_smp_refuses_is_reported_in_one_line():
    message = refusal(built, "mit_b0", "unetplusplus")
    assert "unetplusplus" in message
    assert "mit_b0" in message


def test_a_pair_that_smp_refuses_is_not_blamed_on_the_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "could not be downloaded" not in refusal(built, "mit_b0", "unetplusplus", weights="imagenet")


@pytest.mark.parametrize("encoder", [RESNET, SMALL, "mit_b0"])
def test_count_blocks_equals_the_partition(encoder):
    assert build.count_blocks(NetworkSettings(arch="unet", encoder=encoder)) == len(built(encoder).partition.blocks)


def test_counting_blocks_of_an_unknown_encoder_is_refused():
    assert "did you mean 'resnet18'?" in refusal(build.count_blocks, NetworkSettings(arch="unet", encoder="resnet81"))


# weights from a file


OLD = {"_use_new_zipfile_serialization": False}  # torch's format before 1.6


@pytest.fixture(scope="module")
def donor():
    """An smp network whose encoder no longer has its initial values."""
    torch.manual_seed(9)
    model = smp.create_model("fpn", SMALL, encoder_weights=None, classes=4)
    with torch.no_grad():
        for tensor in model.encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.rand_like(tensor)
    return model


def ours(donor):
    network = built(names=FORMS)
    network.body.encoder.load_state_dict(donor.encoder.state_dict())
    return network


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("encoder.pt", lambda donor, path: torch.save(donor.encoder.state_dict(), path)),
        ("encoder.pth", lambda donor, path: torch.save(donor.encoder.state_dict(), path, **OLD)),
        ("encoder.safetensors", lambda donor, path: save_file(donor.encoder.state_dict(), path)),
        ("ours.safetensors", lambda donor, path: saved.save(ours(donor), path)),
        ("smp.pt", lambda donor, path: torch.save(donor.state_dict(), path)),
        ("smp.safetensors", lambda donor, path: save_file(donor.state_dict(), path)),
    ],
)  # fmt: skip
def test_an_encoder_is_loaded_from_a_file(file, write, donor, tmp_path):
    write(donor, tmp_path / file)
    network = built(weights=str(tmp_path / file))
    assert same_state(network.body.encoder, donor.encoder)
    fresh = built()
    assert torch.equal(network.body.segmentation_head[0].weight, fresh.body.segmentation_head[0].weight)


def test_a_file_in_the_working_directory_is_recognised(donor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(donor.encoder.state_dict(), "mine.pt")
    assert same_state(built(weights="mine.pt").body.encoder, donor.encoder)


def test_weights_of_another_encoder_are_refused(donor, tmp_path):
    save_file(donor.encoder.state_dict(), tmp_path / "encoder.safetensors")
    message = refusal(built, RESNET, weights=str(tmp_path / "encoder.safetensors"))
    assert message.startswith(f"backbone.student.weights={tmp_path / 'encoder.safetensors'}: ")
    assert "do not match" in message


@pytest.mark.parametrize("what", [[1, 2], {"model": {"a": torch.zeros(1)}}, {"epoch": 3}, torch.zeros(3), {}])
def test_a_file_without_tensors_by_name_is_refused(what, tmp_path):
    torch.save(what, tmp_path / "odd.pt")
    assert str(tmp_path / "odd.pt") in refusal(built, weights=str(tmp_path / "odd.pt"))


def test_a_missing_weights_file_is_named(tmp_path):
    assert refusal(built, weights=str(tmp_path / "none.pt")) == f"{tmp_path / 'none.pt'}: no such weights file"


@pytest.mark.parametrize("write", [trap, old_trap])
@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors", ".bin"])
def test_a_weights_file_is_never_executed(write, suffix, tmp_path):
    """Invariant 12."""
    file = tmp_path / f"weights{suffix}"
    write(file)
    assert str(file) in refusal(built, weights=str(file))
    assert not (tmp_path / MARK).exists()
    pickle.loads(pickle.dumps(Trap(tmp_path)))
    assert (tmp_path / MARK).exists()  # the trap works


# weights from the hub


@pytest.mark.parametrize("encoder", [RESNET, SMALL])
def test_without_a_network_pretrained_weights_are_refused_with_advice(encoder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal(built, encoder, weights="imagenet")
    assert message.startswith(f"backbone.student.weights=imagenet: the weights of {encoder} could not be downloaded")
    assert "set backbone.student.weights=null" in message


def test_unknown_pretrained_weights_are_not_blamed_on_the_network():
    message = refusal(built, RESNET, weights="imaginet", key="backbone.teacher")
    assert message.startswith("backbone.teacher.weights=imaginet: ")
    assert "'imagenet'" in message


def test_unknown_weights_of_a_timm_encoder_are_refused():
    """timm itself would use its default for any name."""
    assert timm.is_model("resnet18")
    message = refusal(built, "tu-resnet18", weights="imaginet")
    assert "could not be downloaded" not in message
    assert "imagenet" in message
