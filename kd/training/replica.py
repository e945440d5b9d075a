"""A network in training on this process's share of each batch, in torch's DistributedDataParallel.

Parameters that are opened after wrapping are silently never synchronised, so that the network is wrapped anew whenever
the set of open blocks changes (31 to 48 ms, once per opening). Losses are sums over processes already
(`World.total`), whose gradients each process has as many times over as there are processes: the mean that the wrapper
takes is the whole batch's gradient.
"""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
    """`network` as every process has it; one process alone has the network itself.

    Args:
        size: samples in a whole batch, over all processes.
    """

    def __init__(self, network: Network, world: World = SOLO, size: int = 0) -> None:
        self.network, self.world = network, world
        self._mode = nullcontext() if world.size == 1 else WholeBatch(world, size)
        self._wrapped: nn.Module = network
        self._open: int | None = None

    def wrap(self) -> None:
        """Wrap the network, where other blocks are open than when it was last wrapped. A collective."""
        if self.world.size > 1 and self._open != self.network.unfrozen_blocks:
            self._wrapped = self.network  # the wrapper before takes its hooks along
            # What is drawn or loaded is the same everywhere, statistics are synchronised: nothing to be sent around.
            self._wrapped = DistributedDataParallel(self.network, init_sync=False, **NO_BUFFERS)
            self._open = self.network.unfrozen_blocks

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of this process's images."""
        with self._mode:
            return self._wrapped(images)

    def keeping_gradients(self, keep: bool) -> AbstractContextManager[Any]:
        """Where `keep` holds, gradients are added up here, to be shared with those of a later batch."""
        if keep and isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return nullcontext()

    def compare(self, epoch: int) -> None:
        """See that all processes hold the same weights and statistics, bit for bit. A collective.

        Raises:
            RunError: they do not.
        """
        if self.world.size == 1:
            return
        digests = self.world.gather(digest(self.network))
        others = [rank for rank, each in enumerate(digests) if each != digests[0]]
        if others:
            raise RunError(
                f"epoch {epoch}: the weights of process {', '.join(map(str, others))} are not those of process 0; go "
                "on from the last checkpoint with resume=<run folder>, on machines with the same GPUs, libraries and "
                "files of weights"
            )


def digest(network: nn.Module) -> str:
    """A hash of every parameter and buffer that a network saves."""
    return tensor_file.digest({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})
