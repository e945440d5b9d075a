"""Freeze and unfreeze the blocks of any encoder, from the deepest up, as an unfreezing policy counts them.

`Network` does this for its own encoder; `EncoderBlocks` does it for a plain model in your own training loop.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

from kd.networks.partition import Block, Partition, partition

#: The active hook of each encoder: a second `EncoderBlocks` (a notebook cell run again) replaces the first.
_hooks: "WeakKeyDictionary[nn.Module, RemovableHandle]" = WeakKeyDictionary()


class EncoderBlocks:
    """The blocks of an encoder, deepest first; initially all are unfrozen, except modules that the encoder never runs.

    The parameters of a frozen block require no gradient and have none (so the optimiser skips them, including weight
    decay), and its modules are in eval mode, so batch-norm statistics and stochastic depth are fixed.

    Args:
        encoder: any encoder that takes B x channels x H x W, such as the `encoder` of a model of
            segmentation-models-pytorch; it is changed in place, its weights are not.
        parts: its blocks, if known; None computes them.
        watch: put frozen blocks back into eval mode before every forward pass, in case `.train()` was called. With
            False the caller must call `settle` after each `.train()`.

    An encoder that cannot be traced without data is a single block, with a warning.

    Reference: Howard and Ruder, arXiv 1801.06146, section 3.3 (gradual unfreezing).

    >>> import segmentation_models_pytorch as smp
    >>> model = smp.Unet("resnet18", encoder_weights=None)
    >>> blocks = EncoderBlocks(model.encoder)
    >>> len(blocks), blocks[0].modules, blocks[4].modules
    (5, ('layer4',), ('conv1', 'bn1'))
    >>> blocks.unfreeze(1)
    >>> {name.split(".")[0] for name, p in model.encoder.named_parameters() if p.requires_grad}
    {'layer4'}

    With several processes, wrap the model in DistributedDataParallel again whenever the number of unfrozen blocks
    changes: it never synchronises a parameter that was frozen when it was wrapped.
    """

    def __init__(self, encoder: nn.Module, parts: Partition | None = None, *, watch: bool = True) -> None:
        self.encoder, self.partition = encoder, parts or partition(encoder)
        self.unfrozen = len(self)
        self.unfreeze(len(self))
        if earlier := _hooks.pop(encoder, None):
            earlier.remove()
        if watch:
            _hooks[encoder] = encoder.register_forward_pre_hook(self._before_forward)

    def __len__(self) -> int:
        return len(self.partition.blocks)

    def __getitem__(self, depth: int) -> Block:
        """The block `depth` steps above the deepest."""
        return self.partition.blocks[depth]

    def unfreeze(self, count: int) -> None:
        """Unfreeze the `count` deepest blocks and freeze the others.

        Raises:
            ValueError: there are fewer blocks.
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
        """Put the modules of frozen blocks into eval mode."""
        for block, is_unfrozen in self._states():
            for path in () if is_unfrozen else block.modules:
                self.encoder.get_submodule(path).eval()

    def parameters(self, depth: int) -> list[nn.Parameter]:
        """The parameters of the block `depth` steps above the deepest."""
        parameters = dict(self.encoder.named_parameters())
        return [parameters[name] for name in self[depth].parameters]

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: all of `model` outside the encoder, then one per block, deepest first.

        They are in the order of `EpochPlan.rates`. All exist from the start, so unfreezing a block adds none; modules
        that the encoder never runs are in no group.
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
