"""A foreign teacher takes the channels of the data, or is refused by name."""

import pytest
import segmentation_models_pytorch as smp
import torch

from kd.data.files.pixels import Pixels
from kd.distillation.foreign.files import find
from kd.distillation.foreign.load import load
from kd.distillation.foreign.network import Body, Foreign
from kd.errors import ConfigError, ModelError
from kd.networks.precision import Precision
from kd.settings import ForeignTeacher

NAMES = ("background", "foreground")
FIVE = Pixels(5, 16)
NORMALISED = {"mean": [0.1, 0.2, 0.3, 0.4, 0.5], "std": [0.5] * 5}


def teacher(kind, path, normalisation="none"):
    return ForeignTeacher(
        cache="off", cache_gb=0, kind=kind, path=str(path), normalisation=normalisation, class_map=None
    )


def loaded(chosen, pixels):
    return load(chosen, find(chosen), 1, NAMES, (64, 64), Precision(torch.device("cpu")), pixels)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return smp.Unet("resnet18", encoder_weights=None, in_channels=5, classes=1).eval()


def test_smp_s_network_of_five_channels_teaches_on_five(network, tmp_path):
    network.save_pretrained(tmp_path)
    found = loaded(teacher("smp", tmp_path, NORMALISED), FIVE)
    images = torch.rand(2, 5, 64, 64) * 65535
    mean, std = (torch.tensor(NORMALISED[name]).view(1, 5, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        assert torch.allclose(found(images), network((images / 65535 - mean) / std), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"takes images of 5 channels, and data.channels=3"):
        loaded(teacher("smp", tmp_path), Pixels())
    normalisation = teacher("smp", tmp_path, NORMALISED).normalisation
    with pytest.raises(ConfigError, match=r"teacher.normalisation is of 5 channels, but data.channels=2"):
        Foreign(Body(network, 0), normalisation, 1, NAMES, Pixels(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's older exporter
def test_an_onnx_file_of_five_channels_teaches_on_five(network, tmp_path):
    path = tmp_path / "a.onnx"
    torch.onnx.export(network, (torch.zeros(1, 5, 64, 64),), str(path), dynamo=False)
    assert loaded(teacher("exported", path), FIVE).raw(torch.zeros(1, 5, 64, 64)).shape == (1, 1, 64, 64)
    with pytest.raises(ModelError, match=r"batch x 3 x height x width \(data.channels=3\)"):
        loaded(teacher("exported", path), Pixels())
