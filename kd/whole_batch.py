"""A network that is given a slice of a batch, and computes what it would of the whole.

Two things in a network look beyond a sample: batch normalisation takes statistics over the batch, and dropout and
stochastic depth draw a value for each sample, one after the other. While this mode is on, torch asks it for both. No
module is replaced, so that names, files and checkpoints are those of one process, and a closed block, which normalises
by its running statistics and draws nothing, is let be.

Covered: `F.batch_norm`; `torch.rand`, `Tensor.bernoulli_`, `F.dropout` and its forms for maps, where the leading
dimension is the batch. That is what smp's and timm's networks call. Other draws (`torch.randn`, dropout inside
`scaled_dot_product_attention`) stay each process's own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kd.batch_norm import batch_norm
from kd.world import World

DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}


class WholeBatch(TorchFunctionMode):
    """Within this mode a forward pass on this process's rows is the whole batch's.

    Args:
        world: the processes that share the batch, each of which runs the same forward pass.
        size: samples in the whole batch.
    """

    def __init__(self, world: World, size: int) -> None:
        super().__init__()
        self.world, self.size, self.rows = world, size, world.rows(size)
        self.own = self.rows.stop - self.rows.start
        self._calls: dict[Any, Callable[..., Any]] = {
            F.batch_norm: self._batch_norm, torch.rand: self._rand, Tensor.bernoulli_: self._bernoulli,
        }  # fmt: skip
        self._calls |= {dropout: partial(self._dropout, dropout) for dropout in DROPOUTS}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._calls.get(func, func)(*args, **(kwargs or {}))

    def _rand(self, *args: Any, **options: Any) -> Tensor:
        shape = options.pop("size", args[0] if args and not isinstance(args[0], int) else args)
        if shape and shape[0] == self.own:
            return torch.rand(self.size, *shape[1:], **options)[self.rows]
        return torch.rand(shape, **options)

    def _bernoulli(self, filled: Tensor, *args: Any, **options: Any) -> Tensor:
        if filled.dim() and filled.shape[0] == self.own:
            return filled.copy_(self._whole(filled).bernoulli_(*args, **options)[self.rows])
        return filled.bernoulli_(*args, **options)

    def _batch_norm(self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
                    momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        if training:
            return batch_norm(self.world, input, running_mean, running_var, weight, bias, momentum, eps)
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    def _dropout(
        self, func: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or input.shape[0] != self.own:
            return func(input, p, training, inplace)
        return input * func(self._whole(input).fill_(1), p, training)[self.rows]

    def _whole(self, own: Tensor) -> Tensor:
        """An empty tensor like `own` for the whole batch, in the same order of memory, by which masks are drawn."""
        whole = own.new_empty(self.size, *own.shape[1:])
        if own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last) and not own.is_contiguous():
            return whole.contiguous(memory_format=torch.channels_last)
        return whole
