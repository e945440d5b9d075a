"""Gives a forward pass on one process's slice of a batch the whole batch's result.

Two operations depend on more than one sample: batch normalisation takes statistics over the batch, and dropout and
stochastic depth draw a value for each sample in order. This mode overrides both. No module is replaced, so parameter
names, weight files and checkpoints are those of one process. Frozen blocks, which use running statistics and draw
nothing, are unaffected.

Covered: `F.batch_norm`; `torch.rand`, `Tensor.bernoulli_`, `F.dropout` and its forms for maps, where the leading
dimension is the batch. These are what smp's and timm's networks call. Other draws (`torch.randn`, dropout inside
`scaled_dot_product_attention`) are each process's own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from kd.system.world import World

_backward: Callable[..., Sequence[Tensor | None]] = SyncBatchNorm.backward
DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}


class WholeBatch(TorchFunctionMode):
    """A mode in which a forward pass on this process's rows gives the whole batch's result.

    Args:
        world: the processes that share the batch, each of which runs the same forward pass.
        sizes: samples in each part of the whole batch; every process has its share of each, one part after the other.
    """

    def __init__(self, world: World, *sizes: int) -> None:
        super().__init__()
        self.world, self.size = world, sum(sizes)
        starts = accumulate(sizes, initial=0)
        self.rows = [row for start, size in zip(starts, sizes, strict=False) for row in _own(world, start, size)]
        self.own = len(self.rows)
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
        """An empty tensor like `own` for the whole batch, in the same memory layout: random draws follow it."""
        whole = own.new_empty(self.size, *own.shape[1:])
        if own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last) and not own.is_contiguous():
            return whole.contiguous(memory_format=torch.channels_last)
        return whole


def _own(world: World, start: int, size: int) -> range:
    """A process's rows of the part of a batch that begins at row `start`."""
    return range(start, start + size)[world.rows(size)]


def batch_norm(world: World, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
               weight: Tensor | None = None, bias: Tensor | None = None, momentum: float = 0.1,
               eps: float = 1e-5) -> Tensor:  # fmt: skip
    """`torch.nn.functional.batch_norm` in training mode, with the statistics of all processes' inputs together.

    CUDA uses torch's own kernels, which do not exist for the CPU (`_BatchNorm`). Elsewhere each process's mean and
    variance are merged, since a difference of squares would lose precision. Reference: Chan, Golub, LeVeque, "Updating
    Formulae", Stanford STAN-CS-79-773.

    Shape:
        input B x C x ..., where B and the rest may differ between processes; everything else C.
    """
    if input.is_cuda:
        return _BatchNorm.apply(input, weight, bias, running_mean, running_var, eps, momentum, world)
    dims, channels = [d for d in range(input.dim()) if d != 1], [1, -1] + [1] * (input.dim() - 2)
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    own_var, own_mean = torch.var_mean(values, dims, correction=0)
    own = torch.stack([own_mean, own_var, torch.full_like(own_mean, input.numel() // input.shape[1])])
    table = own.new_zeros(world.size, *own.shape)  # one row per process, gathered by a sum
    table[world.rank] = own
    means, variances, counts = world.total(table).unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean).square())).sum(0) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)  # unbiased, as in torch
    scale = (var + eps).rsqrt()
    normalised = (values - mean.view(channels)) * (scale if weight is None else scale * weight).view(channels)
    return (normalised if bias is None else normalised + bias.view(channels)).to(input.dtype)


class _BatchNorm(SyncBatchNorm):
    """torch's batch normalisation of several processes, without its search for processes that have no samples.

    That search takes the rows of a mask, for which the host waits for the GPU: 59 times in a forward pass of
    EfficientNet-B0. Here every process has samples. The backward pass is torch's.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """The arguments are those of `_BatchNorm.apply`: inputs, parameters, statistics, eps, momentum, world."""
        input, weight, bias, running_mean, running_var, eps, momentum, world = arguments
        if not input.is_contiguous(memory_format=torch.channels_last):
            input = input.contiguous()
        mean, invstd = torch.batch_norm_stats(input, eps)
        count = mean.new_full((1,), input.numel() // input.shape[1])
        own = torch.cat([mean, invstd, count])
        table = own.new_zeros(world.size, len(own))  # one row per process, gathered by a sum
        table[world.rank] = own
        means, invstds, counts = torch.split(world.total(table), len(mean), dim=1)
        of_statistics = counts if running_mean is None else counts.to(running_mean.dtype)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            input, means, invstds, running_mean, running_var, momentum, eps, of_statistics.flatten()
        )
        ctx.save_for_backward(input, weight, mean, invstd, counts.to(torch.int32))
        ctx.process_group = dist.group.WORLD
        return torch.batch_norm_elemt(input, weight, bias, mean, invstd, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(_backward(ctx, gradient)[:8])  # torch's forward pass takes one argument more
