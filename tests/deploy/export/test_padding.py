"""The constant padding is timm's at every size that is a multiple of the stride, and only while exporting."""

from hypothesis import given
from hypothesis import strategies as st
from timm.layers import padding

from kd.deploy.export.padding import constant_padding, constant_same_padding

LENGTHS, SIDES, STRIDES = st.integers(1, 512), st.integers(1, 11), st.integers(1, 4)


@given(LENGTHS, SIDES, STRIDES, STRIDES)
def test_it_is_timms_padding_of_every_multiple_of_the_stride(length, kernel_size, stride, dilation):
    numbers = (length * stride, kernel_size, stride, dilation)
    assert constant_same_padding(*numbers) == padding.get_same_padding(*numbers)


def test_timms_own_padding_is_back_afterwards():
    own = padding.get_same_padding
    with constant_padding():
        assert padding.get_same_padding is constant_same_padding
    assert padding.get_same_padding is own
