"""Numbers are counted as torch.bincount counts them, on every device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd.training.counting import counted

NUMBERS = st.integers(1, 40).flatmap(
    lambda bins: st.tuples(st.lists(st.integers(0, bins - 1), max_size=60), st.just(bins))
)


@given(NUMBERS)
def test_each_number_is_counted(drawn):
    numbers, bins = drawn
    found = counted(torch.tensor(numbers, dtype=torch.int64), bins)
    assert found.tolist() == [numbers.count(each) for each in range(bins)]


@given(NUMBERS)
def test_what_counts_on_a_gpu_puts_each_number_into_its_own_bin(drawn):
    numbers, bins = drawn
    values = torch.tensor(numbers, dtype=torch.float64)  # histc of whole numbers is there on CUDA alone
    assert torch.histc(values, bins=bins, min=0, max=bins).tolist() == [numbers.count(each) for each in range(bins)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is needed")
def test_a_gpu_counts_the_same():
    numbers = torch.randint(0, 17, (1000, 7))
    assert torch.equal(counted(numbers.cuda(), 20).cpu(), counted(numbers, 20))
