"""A network, its data and a check of it, for the tests of exported files."""

import json

import torch
from finished import balanced

from kd.data import Shapes
from kd.deploy.export import Check, pictures
from kd.networks import build
from kd.settings import NetworkSettings

SIZE = (64, 64)
DATA = Shapes(image_size=SIZE, classes=3, train=12, val=6, test=3)
ABOUT = {"class_names": json.dumps(DATA.class_names), "run": "abc"}
#: Depthwise convolutions, squeeze and excitation, batch norms, in few layers: an export takes time for each of them.
SMALLEST = "tu-test_efficientnet"


def network(arch="unet", encoder=SMALLEST):
    torch.manual_seed(0)
    settings = NetworkSettings(arch=arch, encoder=encoder)
    return balanced(build.build(settings, DATA.classes, DATA.class_names, "backbone.student"), DATA)


def check_of(net) -> Check:
    return Check.of(net, *pictures(DATA, SIZE))
