"""Partition any encoder into ordered blocks, deepest first, that are unfrozen one after another.

The encoder is traced without data (`kd.networks.trace`), and its units (residual blocks, stages, layers of a stem) are
taken in execution order.

A block starts at a unit with a lower resolution than any before, or with other channels than a block that contains a
skip connection. So EfficientNets are cut into their seven MBConv stages, with the stem in the first, ResNets into four
layers and a stem, and networks without skip connections into their resolutions. A network of constant shape (a plain
vision transformer) is cut at its features.

A block owns the parameters that the outputs of its units depend on and those of earlier blocks do not, as read from the
autograd graph rather than from names. So unfreezing from the deepest block up never leaves a frozen parameter
downstream of an unfrozen one, wherever the cuts are: if p were downstream of q, everything that depends on p would also
depend on q. A parameter used twice belongs to the block that uses it first.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from torch import nn
from torch.autograd.graph import Node

from kd.networks.trace import Trace, trace, upstream


@dataclass(frozen=True)
class Block:
    """A part of an encoder that is unfrozen at once."""

    modules: tuple[str, ...]  # paths in the encoder; each whole subtree belongs to this block
    parameters: tuple[str, ...]  # names of all its parameters, as in encoder.named_parameters()


@dataclass(frozen=True)
class Partition:
    """Every parameter of an encoder, exactly once.

    A module whose children belong to different blocks is not listed; its own parameters are in `parameters` only.
    """

    blocks: tuple[Block, ...]  # deepest first; the last contains the stem
    never_run: Block  # what no feature depends on; always frozen


def partition(encoder: nn.Module) -> Partition:
    """The blocks of `encoder`, regardless of its device, its mode and which parts are frozen."""
    traced = trace(encoder)
    if traced is None:
        everything = tuple(name for name, _ in encoder.named_children())
        return Partition((Block(everything, tuple(name for name, _ in encoder.named_parameters())),), Block((), ()))
    owner, ends = _owners(traced)
    modules = list(_subtrees(traced, owner, ends, traced.copy))
    names = {parameter: name for name, parameter in traced.copy.named_parameters()}

    def block(number: int | None) -> Block:
        return Block(
            tuple(path for path, owned_by in modules if owned_by == number),
            tuple(name for parameter, name in names.items() if owner.get(parameter) == number),
        )

    return Partition(tuple(block(number) for number in reversed(range(len(ends)))), block(None))


def _owners(traced: Trace) -> tuple[dict[nn.Parameter, int], list[int]]:
    """The block of every used parameter, counted from the stem, and the last call of each block."""
    owner: dict[nn.Parameter, int] = {}
    ends: list[int] = []
    seen: set[Node] = set()
    units, used = _units(traced), traced.used
    groups = _by_shape(traced, units)
    for calls in groups if len(groups) > 1 else _by_feature(traced, units):
        nodes = (node for index in calls for node in traced.calls[index].nodes)
        if new := upstream(nodes, seen) & used:
            owner |= dict.fromkeys(new, len(ends))
            ends.append(calls[-1])
    if beyond := used - owner.keys():  # used by a feature but by no unit: unfrozen with the deepest block
        ends = ends or [len(traced.calls)]
        owner |= dict.fromkeys(beyond, len(ends) - 1)
    return owner, ends


def _units(traced: Trace) -> list[int]:
    """The calls of the outermost modules with their own forward, below containers and wrappers."""

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            is_container = child not in traced.started or type(child).forward is nn.Sequential.forward
            if is_container or used <= set(child.parameters()):
                yield from below(child)
            else:
                yield child

    used = traced.used
    units = set(below(traced.copy))
    return [index for index, call in enumerate(traced.calls) if call.module in units]


def _by_shape(traced: Trace, units: list[int]) -> list[list[int]]:
    """Calls at one resolution and, after a skip connection, with the same number of channels, from the stem down."""
    skipping = {call.module for call in traced.calls if call.skips}
    groups: list[list[int]] = []
    lowest, channels, holds_skip = math.inf, 0, False
    for index in units:
        call = traced.calls[index]
        widens = call.positions == lowest and call.channels != channels and not _is_one_layer(call.module)
        if call.positions < lowest or (widens and holds_skip):
            groups.append([])
            holds_skip = False
        groups[-1].append(index)
        if call.positions <= lowest:
            lowest, channels = call.positions, call.channels
        holds_skip |= not skipping.isdisjoint(call.module.modules())
    return groups


def _by_feature(traced: Trace, units: list[int]) -> list[list[int]]:
    """Calls by the first feature that depends on them, for a network of constant shape."""

    def first(index: int) -> int:
        own = set(traced.calls[index].module.parameters())
        return next((number for number, needed in enumerate(traced.features) if own & needed), len(traced.features))

    return [list(calls) for _, calls in groupby(units, key=first)]


def _is_one_layer(module: nn.Module) -> bool:
    return sum(any(True for _ in layer.parameters(recurse=False)) for layer in module.modules()) == 1


def _subtrees(
    traced: Trace, owner: dict[nn.Parameter, int], ends: list[int], module: nn.Module, path: str = ""
) -> Iterator[tuple[str, int | None]]:
    """The largest subtrees below `module` that belong to a single block; None stands for what never runs."""
    for name, child in module.named_children():
        blocks = {owner.get(parameter) for parameter in child.parameters()}
        if not blocks and ends and child in traced.started:  # a module without parameters belongs where it first runs
            blocks = {min(bisect_left(ends, traced.started[child]), len(ends) - 1)}
        if len(blocks) == 1 or not (blocks or any(True for _ in child.children())):
            yield path + name, blocks.pop() if blocks else None
        else:
            yield from _subtrees(traced, owner, ends, child, f"{path}{name}.")
