"""Latency is that of one image in eval mode, and multiply-adds follow from the shapes of the layers."""

import pytest
import torch
from torch import nn
from toy import CPU

from kd.networks.cost import latencies_ms, macs, seconds_in_turn
from kd.networks.network import Network
from kd.settings import NetworkSettings


class Pointwise(nn.Module):
    """Two 1 x 1 convolutions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def network(classes: int) -> Network:
    names = tuple(f"class_{label}" for label in range(max(classes, 2)))
    return Network(NetworkSettings(arch="unet", encoder="pointwise"), Pointwise(classes), classes, names).train()


def test_calls_are_timed_in_turn_after_the_warm_up():
    order = []
    seconds = seconds_in_turn({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warm_up=2)
    assert order == list("ab" * 5)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert min(map(min, seconds.values())) >= 0


def test_latency_is_that_of_one_image_in_eval_mode():
    student, inputs = network(1), []
    student.register_forward_pre_hook(lambda _, args: inputs.append((args[0].shape, args[0].dtype, student.training)))
    assert latencies_ms({"student": student}, (32, 64), CPU, rounds=3)["student"] > 0
    assert inputs == [((1, 3, 32, 64), torch.uint8, False)] * 5


def test_networks_are_timed_in_turn():
    order = []
    networks = {name: network(1) for name in ("student", "teacher")}
    for name, each in networks.items():
        each.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    assert latencies_ms(networks, (32, 32), CPU, rounds=3).keys() == networks.keys()
    assert order == [*networks] * 5


@pytest.mark.parametrize("classes", [1, 4])
def test_multiply_adds_are_those_of_the_convolutions(classes):
    student = network(classes)
    for height, width in ((64, 96), (64, 96), (32, 32)):  # the second result is cached
        assert macs(student, (height, width)) == height * width * (3 * 8 + 8 * classes)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_restores_the_mode(training):
    student = network(1).train(training)
    latencies_ms({"student": student}, (32, 32), CPU, rounds=1)
    macs(student, (32, 32))
    assert student.training is training
    assert all(module.training is training for module in student.body.head.modules())
