"""Laws of class weights and repeats: closed forms on masks whose pixels are known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd.data import Shapes, Source
from kd.data.batches.loading import TrainLoader
from kd.data.masks.class_balance import ClassBalance, class_balance, inverse_log, repeat_line, weight_line

NAMES = ("sky", "road", "sign")


@dataclass(frozen=True, kw_only=True)
class Known(Source):
    """Three masks of 100 pixels, of which 20 are void: road everywhere, a sign in the first."""

    classes: int = 3
    ignore_index: int | None = 255
    class_names: tuple[str, ...] = NAMES

    def size(self, split: str) -> int:
        return 3

    def name(self, split: str, index: int) -> str:
        return str(index)

    def mask(self, split: str, index: int) -> np.ndarray:
        mask = np.repeat([0, 1, 255], [40, 40, 20]).astype(np.uint8)
        mask[:4] = 2 if index == 0 else 0
        return mask.reshape(10, 10)

    def read(self, split, index):
        raise AssertionError("only masks are read")

    def fingerprint(self) -> str:
        return "known"

    def check(self) -> None: ...


def test_pixels_are_counted_without_void():
    balance = class_balance(Known())
    assert balance.pixels.tolist() == [[36, 40, 4], [40, 40, 0], [40, 40, 0]]
    assert balance.shares == pytest.approx({"sky": 116 / 240, "road": 0.5, "sign": 4 / 240})
    assert balance.presence == pytest.approx({"sky": 1.0, "road": 1.0, "sign": 1 / 3})


def test_automatic_weights_are_those_of_enet():
    expected = {name: 1 / math.log(1.02 + share) for name, share in class_balance(Known()).shares.items()}
    assert class_balance(Known()).weights() == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_rarer_class_has_a_larger_weight_and_none_is_above_fifty(one, other):
    assert 1.42 < inverse_log(one) < 50.6
    assert (inverse_log(one) >= inverse_log(other)) == (one <= other) or one == pytest.approx(other)


def test_a_picture_with_a_rare_class_is_repeated_by_the_root_of_its_rarity():
    assert class_balance(Known()).repeats(0.75) == pytest.approx((1.5, 1.0, 1.0))  # sqrt(0.75 / (1 / 3))
    assert class_balance(Known()).repeats(1 / 3) == pytest.approx((1.0, 1.0, 1.0))


@given(arrays(np.int64, (7, 3), elements=st.integers(0, 5)), st.floats(0.01, 1))
def test_repeats_are_at_least_one_and_rise_with_the_share(pixels, share):
    balance = ClassBalance(NAMES, pixels)
    for low, high in zip(balance.repeats(share / 2), balance.repeats(share), strict=True):
        assert 1 <= low <= high <= math.sqrt(7)


def test_the_lines_name_classes_shares_and_weights():
    balance = class_balance(Known())
    assert "sign 1.67 % x 27.8" in weight_line(balance, balance.weights())
    assert repeat_line(balance, 0.75).startswith("1 of 3 pictures come up to 1.5 times as often as the others: sign 33")
    assert "no class is in less than 10 %" in repeat_line(balance, 0.1)


def test_a_loader_repeats_pictures_in_any_number_of_workers():
    from kd.data.batches.loading import Loading
    from kd.data.batches.order import Order
    from kd.data.views.augmentation import Augmentation

    order = Order(4, (1.0, 1.0, 5.0, 1.0, 1.0, 1.0))
    source = Shapes(image_size=(32, 32), train=6, val=1, test=1)
    batches = [list(TrainLoader(source, Augmentation((), 0), 2, order, Loading(each)).epoch(3)) for each in (0, 2)]
    one, two = ([index for batch in found for index in batch.indices.tolist()] for found in batches)
    assert one == two == order.epoch(3, 6)
    assert one.count(2) == 3
