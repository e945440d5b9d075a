"""Batch normalisation over the whole of a batch that several processes share.

Statistics of a slice are another training: noisier, and other for each number of processes. Reference: Ioffe and
Szegedy, arXiv 1502.03167, algorithm 1 (without the test-time half, which shares nothing).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm

from kd.world import World


def batch_norm(world: World, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
               weight: Tensor | None = None, bias: Tensor | None = None, momentum: float = 0.1,
               eps: float = 1e-5) -> Tensor:  # fmt: skip
    """`torch.nn.functional.batch_norm` in training mode, with the statistics of all processes' inputs together.

    On CUDA by torch's own kernels, which know no CPU. Elsewhere each process's mean and variance are merged: a
    difference of squares would cancel. Reference: Chan, Golub, LeVeque, "Updating Formulae", Stanford STAN-CS-79-773.

    Shape:
        input B x C x ..., where B and the rest may differ between processes; everything else C.
    """
    if input.is_cuda:
        return SyncBatchNorm.apply(
            input, weight, bias, running_mean, running_var, eps, momentum, dist.group.WORLD, world.size
        )
    dims, channels = [d for d in range(input.dim()) if d != 1], [1, -1] + [1] * (input.dim() - 2)
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    own_var, own_mean = torch.var_mean(values, dims, correction=0)
    own = torch.stack([own_mean, own_var, torch.full_like(own_mean, input.numel() // input.shape[1])])
    table = own.new_zeros(world.size, *own.shape)  # a row for each process: one sum gathers them
    table[world.rank] = own
    means, variances, counts = world.total(table).unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean).square())).sum(0) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)  # unbiased, as torch's is
    scale = (var + eps).rsqrt()
    normalised = (values - mean.view(channels)) * (scale if weight is None else scale * weight).view(channels)
    return (normalised if bias is None else normalised + bias.view(channels)).to(input.dtype)
