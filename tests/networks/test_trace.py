"""Tracing an encoder records its calls in order and what its features depend on, and leaves the encoder untouched."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from kd.networks.trace import trace
from tests.networks.test_partition import NeedsData, Toy, Unit, build


def snapshot(encoder: nn.Module) -> dict[str, object]:
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    return {
        "tensors": {
            name: (id(tensor), tensor.requires_grad, tensor.grad, tensor._version) for name, tensor in tensors.items()
        },
        "modules": {path: (id(m), m.training, len(m._forward_hooks)) for path, m in encoder.named_modules()},
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
    }


@pytest.mark.parametrize("name", ["efficientnet-b0", "resnet18", "tu-swin_tiny_patch4_window7_224"])
def test_the_encoder_and_the_random_generators_are_untouched(name):
    encoder = build(name).train()
    next(encoder.children()).eval()
    next(encoder.parameters()).requires_grad = False
    before, weights = snapshot(encoder), copy.deepcopy(encoder.state_dict())
    trace(encoder)
    assert snapshot(encoder) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())


def test_calls_are_recorded_in_order_of_completion():
    traced = trace(Toy())
    names = {module: name for name, module in traced.copy.named_modules()}
    assert [names[call.module] for call in traced.calls] == ["stem", "twice", "down", "twice", ""]
    assert [(call.positions, call.channels) for call in traced.calls[:3]] == [(256**2, 4), (256**2, 4), (128**2, 4)]


def test_features_depend_on_the_parameters_they_use():
    traced = trace(Toy())
    names = {parameter: name for name, parameter in traced.copy.named_parameters()}
    shallow, deep = ({names[parameter] for parameter in feature} for feature in traced.features)
    assert shallow == {"stem.weight", "stem.bias", "shift", "twice.weight", "twice.bias"}
    assert deep == shallow | {"down.weight", "down.bias"}
    assert {names[parameter] for parameter in traced.used} == deep


class Residual(nn.Module):
    """A unit, with or without its input added."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.unit, self.skips = Unit((3, 3), 1, skips=False), skips

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(x) + x if self.skips else self.unit(x)


@pytest.mark.parametrize("skips", [True, False])
def test_a_skip_connection_is_recognised(skips):
    traced = trace(nn.Sequential(nn.Conv2d(3, 3, 1), Residual(skips)))
    assert [call.skips for call in traced.calls if call.module is traced.copy[1]] == [skips]


def test_parameters_hold_no_data():
    traced = trace(Toy())
    assert all(parameter.device.type == "meta" for parameter in traced.copy.parameters())


def test_an_encoder_that_needs_data_has_no_trace():
    with pytest.warns(UserWarning, match="NeedsData does not run without data"):
        assert trace(NeedsData()) is None
