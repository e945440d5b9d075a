"""A network's input normalisation is that of its weights, unless it is given; a decoder may be thin."""

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file as save_tensors

from kd.errors import ModelError
from kd.networks.build import build
from kd.networks.saved import load_file, save
from kd.settings import NetworkSettings

BINARY, SMALL = ("background", "foreground"), "tu-mobilenetv3_small_050"


def test_a_normalisation_may_be_named_or_given():
    for value, mean in (
        ("half", (0.5, 0.5, 0.5)),
        ("none", (0, 0, 0)),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, (0.1, 0.2, 0.3)),
    ):
        settings = NetworkSettings(arch="unet", encoder=SMALL, normalisation=value)
        assert build(settings, 1, BINARY, "backbone.student").normalisation[0] == mean


def test_a_file_of_weights_brings_its_own_normalisation(tmp_path):
    own = NetworkSettings(arch="unet", encoder=SMALL, normalisation={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    save(build(own, 1, BINARY, "backbone.student"), tmp_path / "student.safetensors")
    again = NetworkSettings(arch="unet", encoder=SMALL, weights=str(tmp_path / "student.safetensors"))
    assert build(again, 1, BINARY, "backbone.student").normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_plain_file_of_weights_takes_what_the_encoder_was_published_with(tmp_path):
    encoder = "tu-tf_efficientnet_lite0"
    donor = smp.encoders.get_encoder(encoder, weights=None)
    save_tensors(donor.state_dict(), tmp_path / "encoder.safetensors")
    settings = NetworkSettings(arch="unet", encoder=encoder, weights=str(tmp_path / "encoder.safetensors"))
    assert build(settings, 1, BINARY, "backbone.student").normalisation == ((0.5,) * 3, (0.5,) * 3)


def test_a_thin_decoder_is_built_saved_and_loaded(tmp_path):
    thin = NetworkSettings(arch="unet", encoder=SMALL, decoder_channels=(64, 48, 32, 24, 16))
    network = build(thin, 1, BINARY, "backbone.student")
    usual = build(NetworkSettings(arch="unet", encoder=SMALL), 1, BINARY, "backbone.student")
    assert network.count_parameters() < usual.count_parameters()
    save(network, tmp_path / "student.safetensors")
    loaded = load_file(tmp_path / "student.safetensors").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())


def test_an_architecture_without_decoder_channels_refuses_them():
    settings = NetworkSettings(arch="fpn", encoder=SMALL, decoder_channels=(64, 48, 32, 24, 16))
    with pytest.raises(ModelError, match=r"backbone\.student\.decoder_channels=.*unet"):
        build(settings, 1, BINARY, "backbone.student")
