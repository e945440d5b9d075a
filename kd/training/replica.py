"""A network that trains on this process's share of each batch, in torch's DistributedDataParallel.

Parameters unfrozen after wrapping are silently never synchronised, so the network is wrapped again whenever the set of
unfrozen blocks changes (31 to 48 ms each time). Losses are already sums over processes (`World.total`), so each
process's gradient is too large by a factor of the number of processes: the wrapper's mean over processes is the
gradient of the whole batch.
"""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd.distillation.features import Learner
from kd.errors import RunError
from kd.networks.network import Network
from kd.system import tensor_file
from kd.system.world import SOLO, World
from kd.training.whole_batch import WholeBatch

# A forward pass sends no buffers around. torch before 2.13 knows the switch by the other name only.
_SWITCHES = signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {
    ("forward_sync_buffers" if "forward_sync_buffers" in _SWITCHES else "broadcast_buffers"): False
}


class Replica:
    """This process's replica of `network`; a single process uses the network itself.

    Args:
        sizes: samples in each part of a whole batch, over all processes; see `WholeBatch`.
    """

    def __init__(self, network: Network | Learner, world: World = SOLO, *sizes: int) -> None:
        self.network, self.world = network, world
        self._mode = nullcontext() if world.size == 1 else WholeBatch(world, *sizes)
        self._wrapped: nn.Module = network
        self._wrapped_with: int | None = None  # unfrozen blocks

    def wrap(self) -> None:
        """Wrap the network again if other blocks are unfrozen than at the last call. A collective."""
        if self.world.size > 1 and self._wrapped_with != self.network.unfrozen_blocks:
            self._wrapped = self.network  # drops the old wrapper and its hooks
            # All processes start from the same weights, and statistics are synchronised: there is nothing to send.
            self._wrapped = DistributedDataParallel(self.network, init_sync=False, **NO_BUFFERS)
            self._wrapped_with = self.network.unfrozen_blocks

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits of this process's images, then their features, if the network is a learner."""
        with self._mode:
            answers = self._wrapped(images)
        return answers if isinstance(answers, tuple) else (answers,)

    def keeping_gradients(self, keep: bool) -> AbstractContextManager[Any]:
        """If `keep`, accumulate gradients in this process, to be synchronised with a later batch's."""
        if keep and isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return nullcontext()

    def compare(self, epoch: int) -> None:
        """Check that all processes hold the same weights and statistics, bit for bit. A collective.

        Raises:
            RunError: they differ.
        """
        if self.world.size == 1:
            return
        digests = self.world.gather(digest(self.network))
        others = [rank for rank, each in enumerate(digests) if each != digests[0]]
        if others:
            raise RunError(
                f"epoch {epoch + 1}: the weights of process {', '.join(map(str, others))} differ from those of "
                "process 0; resume from the last checkpoint with resume=<run folder>, on machines with the same GPUs, "
                "libraries and weight files"
            )


def digest(network: nn.Module) -> str:
    """A hash of all parameters and saved buffers of a network."""
    return tensor_file.digest({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})
