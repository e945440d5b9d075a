"""`Foreign` normalises, batches and resizes for its network, and selects the channels of the data's classes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd.distillation.foreign.network import Body, Foreign, first, mapped, probe
from kd.errors import ModelError
from kd.settings import NORMALISATIONS, Normalisation

NONE, IMAGENET = (Normalisation(**NORMALISATIONS[name]) for name in ("none", "imagenet"))


class Applies(nn.Module):
    """Applies a function to the pixels."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels):
        return self.function(pixels)


def foreign(function, classes=3, normalisation=NONE, takes=(None, None, None)) -> Foreign:
    names = tuple(f"class_{number}" for number in range(max(classes, 2)))
    return Foreign(Body(Applies(function), 0, takes), normalisation, classes, names)


def pictures(count=2, height=8, width=12) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


# classes


@st.composite
def maps(draw):
    """A pixel's logits, and the channels of the data's classes, in their order."""
    logits = draw(st.lists(st.floats(-20, 20), min_size=1, max_size=6))
    channels = range(max(len(logits), 2))
    return logits, draw(st.permutations(channels))[: draw(st.integers(2, len(channels)))]


def conditioned(logits: list[float], channels: list[int]) -> list[float]:
    """The slow, obvious way: a softmax over all channels, conditioned on these."""
    both = [0.0, *logits] if len(logits) == 1 else logits
    masses = [math.exp(logit) for logit in both]
    kept = [masses[channel] / sum(masses) for channel in channels]
    return [mass / sum(kept) for mass in kept]


@given(maps())
def test_mapped_logits_are_conditioned_on_the_classes_of_the_data(case):
    logits, channels = case
    result = mapped(torch.tensor(logits, dtype=torch.float64).view(1, -1, 1, 1), torch.tensor(channels), len(channels))
    assert result.softmax(1).flatten().tolist() == pytest.approx(conditioned(logits, channels))


@given(maps())
def test_binary_logits_are_the_difference_of_two_channels(case):
    logits, channels = case
    result = mapped(torch.tensor(logits, dtype=torch.float64).view(1, -1, 1, 1), torch.tensor(channels[:2]), 1)
    assert result.shape == (1, 1, 1, 1)
    assert result.sigmoid().item() == pytest.approx(conditioned(logits, channels[:2])[1])


def test_one_logit_for_binary_data_is_unchanged():
    logits = torch.randn(2, 1, 3, 3)
    assert torch.equal(mapped(logits, torch.tensor([0, 1]), 1), logits)


# pixels and sizes


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        (NONE, lambda x: x),
        (Normalisation(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)), lambda x: (x - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]),
        (Normalisation(mean=(0, 0, 0), std=(1, 1, 1), scale=255), lambda x: x * 255),
        (Normalisation(mean=(99, 88, 77), std=(1, 2, 4), scale=255), lambda x: (x * 255 - [99, 88, 77]) / [1, 2, 4]),
    ],
)  # fmt: skip
def test_the_normalisation_is_applied(normalisation, expected):
    images = pictures()
    wanted = torch.from_numpy(expected(images.permute(0, 2, 3, 1).double().numpy() / 255)).permute(0, 3, 1, 2)
    logits = foreign(lambda pixels: pixels, normalisation=normalisation)(images)
    torch.testing.assert_close(logits, wanted.float(), rtol=1e-5, atol=1e-5)


def test_smaller_logits_are_resized_bilinearly():
    """A ramp stays a ramp."""
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(2, 3, 2, 4)
    logits = foreign(lambda pixels: ramp)(pictures(2, 8, 16))
    assert logits.shape == (2, 3, 8, 16)
    torch.testing.assert_close(logits[0, 0, 0, 2:14], torch.linspace(0.125, 2.875, 12))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_fixed_batch_size_is_respected(count):
    def doubled(pixels):
        assert len(pixels) == 4
        return pixels * 2

    images = pictures(count)
    torch.testing.assert_close(foreign(doubled, takes=(4, None, None))(images), images / 255 * 2)


def test_the_logits_are_a_tensor_or_the_first_item_or_the_key_out():
    logits, other = torch.zeros(1, 2, 4, 4), torch.ones(1)
    for output in (logits, (logits, other), [logits], {"logits": logits, "aux": other}, {"aux": other, "out": logits}):
        assert first(output) is logits
    with pytest.raises(ModelError, match="returns NoneType"):
        first(None)
    with pytest.raises(ModelError, match="returns dict"):
        first({})


# the probe


def test_the_probe_returns_the_number_of_channels():
    assert probe(foreign(lambda pixels: torch.randn(1, 7, 2, 2)), (8, 12), "teacher.path=x") == 7


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda pixels: torch.randn(1, 3, 8, 12).softmax(1), "probabilities.*without softmax"),
        (lambda pixels: torch.randn(1, 3, 8, 12).argmax(1), "1x8x12.*without argmax"),
        (lambda pixels: torch.zeros(1, 3, 8, 12, dtype=torch.int64), "int64.*without argmax"),
        (lambda pixels: torch.randn(1, 3), "1x3 torch.float32"),
        (lambda pixels: torch.randn(2, 3, 8, 12), "2x3x8x12"),
        (lambda pixels: pixels.view(1, 7, -1), "fails on an image of 8 x 12"),
        (lambda pixels: "logits", "returns str"),
    ],
)
def test_output_other_than_raw_logits_is_refused(function, says):
    with pytest.raises(ModelError, match=f"^teacher.path=x: .*{says}"):
        probe(foreign(function), (8, 12), "teacher.path=x")


def test_the_error_for_a_wrong_image_size_names_the_size():
    with pytest.raises(ModelError, match=r"64 x 96.*'data.image_size=\[64,96\]'"):
        probe(foreign(lambda pixels: pixels, takes=(None, 64, 96)), (32, 32), "teacher.path=x")
    assert probe(foreign(lambda pixels: pixels, takes=(None, 64, 96)), (64, 96), "teacher.path=x") == 3
