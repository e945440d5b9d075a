"""Predictions on pictures of five channels: whole, or row by row where they are too large to be read whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiffs import write_tiff

from kd.data.files.pixels import Pixels
from kd.data.sizing import Sizing
from kd.data.statistics import Statistics
from kd.deploy.predictor import Predictor, Tally, listed, suffixes
from kd.deploy.style import Style
from kd.networks.build import build
from kd.networks.precision import Precision
from kd.settings import NetworkSettings

FIVE = Pixels(5, 16)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    known = Statistics((30000.0,) * 5, (19000.0,) * 5)
    return (
        build(settings, 1, ("background", "foreground"), "backbone.student", FIVE, known).eval().requires_grad_(False)
    )


def predicted(network, picture, out, kind):
    predictor = Predictor(network, Sizing((32, 32), "crop"), Precision(torch.device("cpu")), Style(kind, 1, (0, 1)))
    tally = Tally()
    assert list(predictor.run([(picture, out)], 4, 1, tally)) == [1]
    assert tally.failures == []
    return np.asarray(Image.open(out))


@pytest.mark.parametrize("kind", ["masks", "probabilities"])
def test_a_tiff_beyond_the_limit_gives_what_it_gives_when_read_whole(network, tmp_path, monkeypatch, kind):
    picture = np.random.default_rng(0).integers(0, 65536, (75, 90, 5), np.uint16)
    path = write_tiff(tmp_path / "a.tif", picture, tile=16, deflate=True)
    whole = predicted(network, path, tmp_path / "whole.png", kind)
    monkeypatch.setattr("kd.data.files.raw_tiff.MAX_PIXELS", 1000)
    assert np.array_equal(predicted(network, path, tmp_path / "rows.png", kind), whole)
    assert whole.shape == (75, 90)


def test_arrays_are_pictures_of_such_networks_alone(tmp_path):
    for name in ("a.npy", "b.png"):
        (tmp_path / name).touch()
    assert [path.name for path in listed(tmp_path, tmp_path / "out", suffixes(FIVE)).images] == ["a.npy", "b.png"]
    assert [path.name for path in listed(tmp_path, tmp_path / "out", suffixes(Pixels())).images] == ["b.png"]
