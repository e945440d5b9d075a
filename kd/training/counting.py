"""Histograms of small numbers, counted without synchronising the GPU."""

import torch
from torch import Tensor


def counted(numbers: Tensor, bins: int) -> Tensor:
    """How often each of 0 ... bins - 1 occurs in a tensor of int64 that holds no other, as `torch.bincount` counts.

    On CUDA `bincount` waits for the queue twice, to look for the largest and smallest number.
    """
    if numbers.is_cuda:
        return torch.histc(numbers.flatten(), bins=bins, min=0, max=bins)
    return torch.bincount(numbers.flatten(), minlength=bins)
