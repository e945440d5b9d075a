"""The blocks of an encoder, opened from the deepest up: what an unfreezing policy counts, for any encoder.

`Network` opens its own in this way; `EncoderBlocks` does the same for a plain model in a loop of one's own.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

from kd.networks.partition import Block, Partition, partition

#: Whoever watches an encoder now: a second look at it (a notebook's cell, run again) takes the place of the first.
_watching: "WeakKeyDictionary[nn.Module, RemovableHandle]" = WeakKeyDictionary()


class EncoderBlocks:
    """The blocks of an encoder, deepest first; all are open at first, except what the encoder never runs.

    A closed block is closed: its parameters need no gradient and have none (so the optimiser passes them by, weight
    decay included), and its modules are in eval mode: batch-norm statistics and stochastic depth stand still.

    Args:
        encoder: any encoder that takes B x 3 x H x W, such as the `encoder` of a model of
            segmentation-models-pytorch; it is changed in place, and its weights stay as they are.
        parts: its blocks, where they are known; None finds them.
        watch: put closed blocks back in eval mode before every forward pass, whatever `.train()` was called meanwhile.
            False leaves that to the caller, who calls `settle` after each `.train()`.

    An encoder that cannot be followed without data opens as one block, with a warning.

    Reference: Howard and Ruder, arXiv 1801.06146, section 3.3 (gradual unfreezing).

    >>> import segmentation_models_pytorch as smp
    >>> model = smp.Unet("resnet18", encoder_weights=None)
    >>> blocks = EncoderBlocks(model.encoder)
    >>> len(blocks), blocks[0].modules, blocks[4].modules
    (5, ('layer4',), ('conv1', 'bn1'))
    >>> blocks.unfreeze(1)
    >>> {name.split(".")[0] for name, p in model.encoder.named_parameters() if p.requires_grad}
    {'layer4'}

    Where several processes train together, wrap the model in DistributedDataParallel again whenever the number of open
    blocks changes: it never synchronises a parameter that was closed when it was wrapped.
    """

    def __init__(self, encoder: nn.Module, parts: Partition | None = None, *, watch: bool = True) -> None:
        self.encoder, self.partition = encoder, parts or partition(encoder)
        self.unfrozen = len(self)
        self.unfreeze(len(self))
        if earlier := _watching.pop(encoder, None):
            earlier.remove()
        if watch:
            _watching[encoder] = encoder.register_forward_pre_hook(self._before_forward)

    def __len__(self) -> int:
        return len(self.partition.blocks)

    def __getitem__(self, depth: int) -> Block:
        """The names of the block `depth` steps above the deepest."""
        return self.partition.blocks[depth]

    def unfreeze(self, count: int) -> None:
        """Open the `count` deepest blocks and close the others.

        Raises:
            ValueError: there are not so many blocks.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"count must be a number of blocks, 0 to {len(self)}, but got {count!r}")
        self.unfrozen = count
        parameters = dict(self.encoder.named_parameters())
        for block, is_unfrozen in self._states():
            for name in block.parameters:
                parameters[name].requires_grad_(is_unfrozen)
                if not is_unfrozen:
                    parameters[name].grad = None
        self.encoder.train(self.encoder.training)
        self.settle()

    def settle(self) -> None:
        """Put the modules of closed blocks in eval mode."""
        for block, is_unfrozen in self._states():
            for path in () if is_unfrozen else block.modules:
                self.encoder.get_submodule(path).eval()

    def parameters(self, depth: int) -> list[nn.Parameter]:
        """The parameters of the block `depth` steps above the deepest."""
        parameters = dict(self.encoder.named_parameters())
        return [parameters[name] for name in self[depth].parameters]

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: all of `model` outside the encoder, then a group per block, deepest first.

        They are in the order of `EpochPlan.rates`. All exist from the start, so that opening a block adds none; what
        the encoder never runs is in no group.
        """
        encoder = {id(parameter) for parameter in self.encoder.parameters()}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in encoder]
        return [{"params": each} for each in (rest, *(self.parameters(depth) for depth in range(len(self))))]

    def _states(self) -> Iterator[tuple[Block, bool]]:
        for depth, block in enumerate(self.partition.blocks):
            yield block, depth < self.unfrozen
        yield self.partition.never_run, False

    def _before_forward(self, encoder: nn.Module, _: Any) -> None:
        if encoder.training:
            self.settle()
