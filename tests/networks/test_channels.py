"""A network of other channels: its first convolution is adapted, its file says so, and its input is normalised."""

import json

import numpy as np
import pytest
import torch

from kd.config.compose import compose, plain
from kd.config.read import checked
from kd.data.files.pixels import Pixels
from kd.data.statistics import Statistics
from kd.errors import ConfigError, ModelError
from kd.networks import saved
from kd.networks.build import build
from kd.networks.spec import NetworkSpec, read_spec
from kd.networks.weights import adapted
from kd.settings import NetworkSettings

TINY = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
LITE = NetworkSettings(arch="unet", encoder="tu-tf_efficientnet_lite0", weights="imagenet")
NAMES = ("background", "foreground")
FIVE = Pixels(5, 16)
KNOWN = Statistics((1500.0, 2.0, 3.0, 4.0, 5.0), (10.0, 20.0, 30.0, 40.0, 50.0))


def built(settings=TINY, pixels=FIVE, known=KNOWN):
    torch.manual_seed(0)
    return build(settings, 1, NAMES, "backbone.student", pixels, known).eval()


def test_input_is_normalised_by_the_data_s_statistics_in_stored_values():
    network = built()
    images = torch.rand(2, 5, 32, 32) * 3000
    mean, std = (torch.tensor(values).view(1, 5, 1, 1) for values in (KNOWN.mean, KNOWN.std))
    assert torch.allclose(network.normalised(images), (images - mean) / std, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert network(images).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("pixels", [Pixels(1), Pixels(4), FIVE, Pixels(2, "float")])
def test_a_saved_network_comes_back_with_its_channels(tmp_path, pixels):
    count = pixels.channels
    network = built(pixels=pixels, known=Statistics(KNOWN.mean[:count], KNOWN.std[:count]))
    saved.save(network, tmp_path / "a.safetensors", image_size=[32, 32])
    again = saved.load_file(tmp_path / "a.safetensors").eval()
    images = network.black(2, (32, 32)) + 7
    assert (again.pixels, images.shape[1]) == (pixels, count)
    assert images.dtype == (torch.float32 if pixels.deep else torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(images), again(images))


def test_the_description_of_rgb_of_8_bits_is_as_before(tmp_path):
    network = built(pixels=Pixels(), known=None)
    saved.save(network, tmp_path / "a.safetensors")
    said = json.loads((tmp_path / "a.json").read_text())
    assert list(said) == ["arch", "encoder", "classes", "class_names", "mean", "std"]
    dumped = read_spec(tmp_path / "a.safetensors").model_dump(mode="json", exclude={"class_names"})
    assert list(dumped) == ["arch", "encoder", "classes", "mean", "std", "decoder_channels"]  # as in digests of caches


@pytest.mark.parametrize("channels", [[4096] * 5, 4096, [8] * 9, [0]])
def test_a_description_cannot_ask_for_much_memory(channels):
    """Networks are built before their shapes are compared with those of a file."""
    said = {
        "arch": "unet",
        "encoder": "resnet18",
        "classes": 1,
        "class_names": NAMES,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    NetworkSpec.model_validate({**said, "decoder_channels": [1024, 512, 256, 128, 64]})
    with pytest.raises(ValueError, match="decoder_channels"):
        NetworkSpec.model_validate({**said, "decoder_channels": channels})


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"channels": 17}, {"depth": 12}, {"channels": 4}])
def test_a_description_of_other_channels_than_its_numbers_is_refused(wrong):
    said = {"arch": "unet", "encoder": "resnet18", "classes": 1, "class_names": NAMES, "channels": 5, "depth": 16,
            "mean": [0.5] * 5, "std": [0.5] * 5}  # fmt: skip
    NetworkSpec.model_validate(said)
    with pytest.raises(ValueError, match=r"channels|depth|numbers"):
        NetworkSpec.model_validate({**said, **wrong})


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_packaged_weights_are_adapted_to_other_channels(channels):
    """A grey picture in all channels gives the first layer's response to the same picture in RGB."""
    rgb, other = (built(LITE, Pixels(count), None).body.encoder.model for count in (3, channels))
    grey = torch.rand(1, 1, 32, 32)
    first, second = (each.conv_stem(grey.expand(1, count, -1, -1)) for each, count in ((rgb, 3), (other, channels)))
    if channels != 2 and channels != 5:  # repeated channels keep it exactly only if all of RGB are repeated alike
        assert torch.allclose(first, second, atol=1e-5)
    assert torch.equal(other.conv_stem.weight, adapted(rgb.conv_stem.weight.data, channels))
    state, own = rgb.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], own[name]) for name in state if name != "conv_stem.weight")


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_weights_from_a_file_are_adapted_as_smp_adapts_named_ones(tmp_path, channels):
    saved.save(built(pixels=Pixels(), known=None), tmp_path / "a.safetensors")
    settings = TINY.model_copy(update={"weights": str(tmp_path / "a.safetensors")})
    network = built(settings, Pixels(channels), None)
    theirs = saved.load_file(tmp_path / "a.safetensors").body.encoder.model.conv_stem.weight
    assert torch.equal(network.body.encoder.model.conv_stem.weight, adapted(theirs, channels))


def test_a_student_s_file_is_never_adapted(tmp_path):
    saved.save(built(pixels=Pixels(), known=None), tmp_path / "a.safetensors")
    said = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**said, "channels": 4, "mean": [0.5] * 4, "std": [0.5] * 4}))
    with pytest.raises(ModelError, match="do not match the network"):
        saved.load_file(tmp_path / "a.safetensors")


def test_equal_numbers_of_a_normalisation_are_of_every_channel():
    half = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050", normalisation="half")
    assert built(half).normalisation == ((0.5,) * 5, (0.5,) * 5)


FOLDER = ["data=folder", "data.root=.", "data.channels=5", "data.depth=16", "backbone=tiny"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["augment=heavy"],
            "augment.transforms has ColorJitter, which needs RGB or grey, but pictures have 5 channels",
        ),
        (["backbone.student.normalisation=imagenet"], r"backbone.student.normalisation is of 3 channels"),
        (["backbone.teacher.normalisation={mean: [1,2], std: [1,2]}"], r"backbone.teacher.normalisation is of 2 chan"),
        (["data.mean=[1,2,3]", "data.std=[1,2,3]"], "number for each of the 5 channels"),
        (["data.channels=17"], "data.channels must be a whole number, from 1 to 16"),
        (["data=shapes", "data.image_size=[32,32]", "+data.channels=5"], "its pictures are RGB"),
    ],
)
def test_mistakes_are_named_before_anything_trains(overrides, message):
    overrides = overrides if "data=shapes" in overrides else [*FOLDER, *overrides]
    with pytest.raises(ConfigError, match=message):
        checked(plain(compose(overrides)), look_at_data=False)


def test_noise_has_the_range_of_the_pixels():
    for pixels, top in ((Pixels(), 255), (Pixels(4), 255), (FIVE, 65535), (Pixels(2, "float"), 1)):
        noise = pixels.noise(2, (32, 32))
        assert noise.shape == (2, pixels.channels, 32, 32)
        assert noise.dtype == (np.float32 if pixels.deep else np.uint8)
        assert 0.9 * top < noise.max() <= top
