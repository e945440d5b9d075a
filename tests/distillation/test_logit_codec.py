"""What a codec keeps of logits: exact halves, 256 values between a picture's ends, or means of 2 x 2 pixels."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_logits import logits

from kd.distillation.logit_codec import CODECS, EXACT
from kd.settings import TrainedTeacher

INT8 = CODECS["int8"]
LARGEST = 65504.0  # of half precision
SIZES = [(6, 4), (5, 7), (1, 2), (1, 1), (33, 8)]
each_form = pytest.mark.parametrize("form", CODECS)
each_size = pytest.mark.parametrize("size", SIZES)
some_logits = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    elements=st.floats(-1e5, 1e5, width=32, allow_subnormal=False),
).map(torch.from_numpy)


def decoded(codec, given_BCHW: torch.Tensor) -> torch.Tensor:
    return codec.decode(codec.encode(given_BCHW), tuple(given_BCHW.shape[-2:]))


def random(size: tuple[int, int]) -> torch.Tensor:
    return logits(3, 0, (2, *size))


# every codec


def test_there_is_a_codec_for_every_value_of_the_option():
    assert get_args(TrainedTeacher.model_fields["stored"].annotation) == tuple(CODECS)


@each_form
@each_size
def test_records_are_as_described_and_decode_to_contiguous_floats(form, size):
    codec, given = CODECS[form], random(size)
    shape, dtype = codec.record(given.shape[1:])
    records = codec.encode(given)
    assert (records.shape, records.dtype) == ((2, *shape), dtype)
    found = codec.decode(records, size)
    assert (found.shape, found.dtype) == (given.shape, torch.float32)
    assert records.is_contiguous()
    assert found.is_contiguous()


@each_form
@each_size
def test_a_record_depends_on_its_picture_alone_and_on_no_memory_layout(form, size):
    codec, given = CODECS[form], random(size)
    records = codec.encode(given.contiguous(memory_format=torch.channels_last))
    assert torch.equal(records, torch.cat([codec.encode(one) for one in given.split(1)]))
    assert torch.equal(codec.decode(records[1:], size), codec.decode(records, size)[1:])


@each_form
@given(value=st.floats(-LARGEST, LARGEST, width=16))
def test_equal_logits_are_exact(form, value):
    given = torch.full((1, 2, 3, 5), value)
    assert torch.equal(decoded(CODECS[form], given), given)


@each_form
def test_infinite_logits_become_half_precisions_largest(form):
    given = torch.tensor([float("inf"), -float("inf")])[None, :, None, None].expand(1, 2, 4, 4)
    assert decoded(CODECS[form], given)[0, :, 0, 0].tolist() == [LARGEST, -LARGEST]


@each_form
def test_a_nan_stays_one_and_touches_no_other_picture_or_class(form):
    given = random((6, 4))
    given[0, 1, 2, 2] = float("nan")
    missing = decoded(CODECS[form], given).isnan()
    assert missing[0, 1, 2, 2]
    missing[0, 1] = False
    assert not missing.any()


# exact


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1))
def test_exact_is_the_nearest_half_and_never_infinite(values):
    halves = EXACT.encode(torch.tensor(values))
    assert halves.dtype == torch.float16
    for value, half in zip(values, halves.tolist(), strict=True):
        expected = value if value != value else min(max(value, -LARGEST), LARGEST)
        np.testing.assert_equal(half, float(np.float16(expected)))
        assert half != half or abs(half) <= LARGEST


@settings(deadline=None)
@given(st.lists(st.floats(width=16), min_size=1))
def test_exact_is_idempotent(values):
    once = EXACT.encode(torch.tensor(values))
    np.testing.assert_array_equal(EXACT.encode(once.float()).numpy(), once.numpy())


# 8 bits


@settings(deadline=None)
@given(some_logits)
def test_8_bits_are_off_by_half_a_step_at_most_and_exact_at_both_ends(given):
    kept = given.double().clamp(-LARGEST, LARGEST)
    low, high = kept.amin((2, 3), True), kept.amax((2, 3), True)
    rounding = 1e-6 * kept.abs().amax((2, 3), True)  # of float32
    found = decoded(INT8, given).double()
    assert ((found - kept).abs() <= (high - low) / 255 / 2 + rounding).all()
    assert torch.equal(found.amin((2, 3), True), low)
    assert torch.equal(found.amax((2, 3), True), high)


@settings(deadline=None)
@given(some_logits)
@example(torch.full((1, 1, 1, 1), -0.0))
def test_8_bits_are_idempotent(given):
    records = INT8.encode(given)
    assert torch.equal(INT8.encode(INT8.decode(records, tuple(given.shape[-2:]))), records)


def test_8_bits_are_256_evenly_spaced_values():
    given = torch.linspace(-3, 2, 4096).view(1, 1, 64, 64)
    values = decoded(INT8, given).unique()
    torch.testing.assert_close(values, torch.linspace(-3, 2, 256))
