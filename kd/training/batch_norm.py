"""Batch-norm statistics of a network with random weights, measured before it is frozen."""

from contextlib import nullcontext
from itertools import islice

import torch

from kd.data.batches.loading import TrainLoader
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.training.step import step_seed
from kd.training.whole_batch import WholeBatch


def measure_batch_norm(
    network: Network, loader: TrainLoader, precision: Precision, seed: int, batches: int = 32
) -> None:
    """Set every batch-norm statistic to its mean over the first training batches; weights do not change.

    All blocks are unfrozen. An encoder of random weights that is frozen from the start would otherwise normalise with
    mean 0 and variance 1, which its activations do not have, and hand the decoder noise.
    """
    world = loader.world
    torch.manual_seed(step_seed(seed, -1, 0))
    network.unfreeze(len(network.partition.blocks))
    with precision.autocast(), nullcontext() if world.size == 1 else WholeBatch(world, *loader.batch_size()):
        images = (batch.to(precision.device).all_images() for batch in islice(loader.epoch(0), batches))
        torch.optim.swa_utils.update_bn(images, network)
