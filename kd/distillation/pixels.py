"""Means over what counts of a batch, which several processes may share."""

from collections.abc import Callable

import torch
from torch import Tensor

#: Sums a tensor over the processes that share a batch; differentiable. None: a single process has the whole batch.
Total = Callable[[Tensor], Tensor] | None


def mean_over_valid(values: Tensor, valid: Tensor | None, total: Total = None, weights: Tensor | None = None) -> Tensor:
    """The mean of values (per pixel, or per picture) where `valid`, of the same shape, is true; 0 if nowhere.

    With `weights`, of the same shape, it is the sum of weight x value over the sum of weights. Never waits for the
    device.
    """
    if weights is not None:
        return _weighted_mean(values, weights, valid, total)
    if valid is None and total is None:
        return values.mean()
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    # Not a product with 0 and 1, since an overflow in a void pixel would make it NaN.
    amount, count = torch.where(valid, values, 0).sum(), valid.sum()
    if total is not None:
        amount, count = total(torch.stack([amount, count.to(amount.dtype)]))
    return amount / count.clamp(min=1)


def _weighted_mean(values: Tensor, weights: Tensor, valid: Tensor | None, total: Total) -> Tensor:
    weighted = values * weights
    if valid is not None:
        weighted, weights = torch.where(valid, weighted, 0), torch.where(valid, weights, 0)
    sums = torch.stack([weighted.sum(), weights.sum()])
    amount, count = sums if total is None else total(sums)
    return amount / count.clamp(min=torch.finfo(count.dtype).tiny)
