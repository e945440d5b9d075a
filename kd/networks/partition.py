"""Any encoder -> ordered blocks, deepest first: what opens together when an encoder is opened step by step.

The encoder runs once, without data, as a twin whose parameters lie on the meta device: nothing is computed, and the
encoder itself is not touched. Its units (residual blocks, stages, layers of a stem) are watched in execution order.

Where to cut: before a unit that works at a lower resolution than any so far, or that changes the channels of a block
which holds a skip connection. So EfficientNets fall into their seven MBConv stages with the stem in the first, ResNets
into four layers and a stem, and networks without skip connections into their resolutions. A network of one shape
throughout (plain vision transformers) is cut at its features.

What a block owns: the parameters which the outputs of its units depend on and those of earlier blocks do not, read from
the autograd graph and not from names. So opening from the deepest block up never leaves a closed parameter downstream
of an open one, wherever the cuts fall: if p lay downstream of q, all that depends on p would depend on q as well.
A parameter used twice counts where it is used first.
"""

import copy
import math
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

# Sides in pixels, tried in turn: most encoders take any multiple of 32, some are built for one size and refuse others.
IMAGE_SIZES = (256, 224, 384, 448, 512, 160, 192, 240, 288, 320, 336)


@dataclass(frozen=True)
class Block:
    """Part of an encoder that opens at one moment."""

    modules: tuple[str, ...]  # paths below the encoder; the whole subtree of each belongs to this block
    parameters: tuple[str, ...]  # names of all its parameters, as in encoder.named_parameters()


@dataclass(frozen=True)
class Partition:
    """Every parameter of an encoder, once.

    A module whose children are split between blocks is listed nowhere; what it owns itself is in `parameters` alone.
    """

    blocks: tuple[Block, ...]  # deepest first; the last holds the stem
    never_run: Block  # what the encoder owns but no feature depends on: stays closed


@dataclass(frozen=True)
class _Call:
    """One module, run once."""

    module: nn.Module
    positions: int  # pixels or tokens of its output; of the smallest if it has several
    channels: int
    nodes: tuple[Node, ...]  # where its outputs stand in the autograd graph
    skips: bool  # whether an addition leads past its parameters


@dataclass(frozen=True)
class _Trace:
    """One run of the twin."""

    twin: nn.Module
    calls: list[_Call]  # in order of completion
    started: dict[nn.Module, int]  # how many calls were complete when a module first was
    features: list[set[nn.Parameter]]  # what each feature depends on

    @property
    def used(self) -> set[nn.Parameter]:
        return set().union(*self.features)


def partition(encoder: nn.Module) -> Partition:
    """The blocks of `encoder`, on whatever device, in whatever mode, and with whatever part of it closed."""
    trace = _trace(encoder)
    if trace is None:
        everything = tuple(name for name, _ in encoder.named_children())
        return Partition((Block(everything, tuple(name for name, _ in encoder.named_parameters())),), Block((), ()))
    owner, ends = _owners(trace)
    modules = list(_subtrees(trace, owner, ends, trace.twin))
    names = {parameter: name for name, parameter in trace.twin.named_parameters()}

    def block(number: int | None) -> Block:
        return Block(
            tuple(path for path, whose in modules if whose == number),
            tuple(name for parameter, name in names.items() if owner.get(parameter) == number),
        )

    return Partition(tuple(block(number) for number in reversed(range(len(ends)))), block(None))


def _trace(encoder: nn.Module) -> _Trace | None:
    """One forward pass over the first image size that `encoder` accepts; None, and a warning, where none is."""
    refusals = []
    for size in IMAGE_SIZES:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return _run(_on_meta(encoder), size, getattr(encoder, "_in_channels", 3))
        except Exception as error:  # an encoder refuses a size with whatever exception its author chose
            refusals.append(error)
    name = type(encoder).__name__
    warnings.warn(f"{name} does not run without data, so it opens as one block: {refusals[0]}", stacklevel=3)
    return None


def _on_meta(encoder: nn.Module) -> nn.Module:
    """A twin without data, in eval mode; every parameter is open, as autograd is to see them all."""
    memo: dict[int, Tensor] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in encoder.buffers()}
    for parameter in encoder.parameters():
        open_ = parameter.is_floating_point()
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=open_)
    return copy.deepcopy(encoder, memo).eval()


def _run(twin: nn.Module, size: int, in_channels: int) -> _Trace:
    calls: list[_Call] = []
    started: dict[nn.Module, int] = {}

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        started.setdefault(module, len(calls))
        outputs = _in_graph(output)
        if outputs and any(True for _ in module.parameters()):
            positions, channels = min((_geometry(tensor) for tensor, _ in outputs), key=lambda geometry: geometry[0])
            nodes = tuple(node for _, node in outputs)
            skips = _skips({node for _, node in _in_graph(inputs)}, nodes[0])
            calls.append(_Call(module, positions, channels, nodes, skips))

    for module in twin.modules():
        module.register_forward_hook(record)
    dtype = next((parameter.dtype for parameter in twin.parameters() if parameter.is_floating_point()), None)
    features = twin(torch.empty(1, in_channels, size, size, dtype=dtype, device="meta"))
    return _Trace(twin, calls, started, [_upstream([node], set()) for _, node in _in_graph(features)])


def _in_graph(values: object) -> list[tuple[Tensor, Node]]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return [(tensor, tensor.grad_fn) for tensor in tensors if tensor.grad_fn is not None]


def _geometry(output: Tensor) -> tuple[int, int]:
    """Positions and channels of a square map, NCHW or NHWC, or of tokens, NLC, of one image."""
    shape = output.shape
    channels = shape[1] if len(shape) == 4 and shape[2] == shape[3] else shape[-1]
    return output.numel() // channels, channels


def _skips(sources: set[Node], output: Node) -> bool:
    """Whether additions, and operations with one input and no parameter, lead from `output` back to `sources`."""
    seen, ahead = set(), [output]
    while ahead:
        node = ahead.pop()
        if node in sources:
            return True
        inputs = [source for source, _ in node.next_functions if source is not None]
        if node not in seen and (len(inputs) == 1 or node.name().startswith("AddBackward")):
            seen.add(node)
            ahead += inputs
    return False


def _upstream(nodes: Iterable[Node], seen: set[Node]) -> set[nn.Parameter]:
    """The parameters that `nodes` depend on, without those behind nodes `seen` before; adds to `seen`."""
    found, ahead = set(), list(nodes)
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        ahead += [source for source, _ in node.next_functions if source is not None]
    return found


def _owners(trace: _Trace) -> tuple[dict[nn.Parameter, int], list[int]]:
    """The block of every used parameter, counted from the stem, and the call that ends each block."""
    owner: dict[nn.Parameter, int] = {}
    ends: list[int] = []
    seen: set[Node] = set()
    units, used = _units(trace), trace.used
    groups = _by_shape(trace, units)
    for calls in groups if len(groups) > 1 else _by_feature(trace, units):
        nodes = (node for index in calls for node in trace.calls[index].nodes)
        if new := _upstream(nodes, seen) & used:
            owner |= dict.fromkeys(new, len(ends))
            ends.append(calls[-1])
    if beyond := used - owner.keys():  # needed by a feature, but by no unit: opens with the deepest block
        ends = ends or [len(trace.calls)]
        owner |= dict.fromkeys(beyond, len(ends) - 1)
    return owner, ends


def _units(trace: _Trace) -> list[int]:
    """The calls of the outermost modules with a forward of their own: below containers, and below mere wrappers."""

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            is_container = child not in trace.started or type(child).forward is nn.Sequential.forward
            if is_container or used <= set(child.parameters()):
                yield from below(child)
            else:
                yield child

    used = trace.used
    units = set(below(trace.twin))
    return [index for index, call in enumerate(trace.calls) if call.module in units]


def _by_shape(trace: _Trace, units: list[int]) -> list[list[int]]:
    """Calls that work at one resolution, and after a skip connection with as many channels, from the stem down."""
    skipping = {call.module for call in trace.calls if call.skips}
    groups: list[list[int]] = []
    lowest, channels, holds_skip = math.inf, 0, False
    for index in units:
        call = trace.calls[index]
        widens = call.positions == lowest and call.channels != channels and not _is_one_layer(call.module)
        if call.positions < lowest or (widens and holds_skip):
            groups.append([])
            holds_skip = False
        groups[-1].append(index)
        if call.positions <= lowest:
            lowest, channels = call.positions, call.channels
        holds_skip |= not skipping.isdisjoint(call.module.modules())
    return groups


def _by_feature(trace: _Trace, units: list[int]) -> list[list[int]]:
    """Calls by the first feature that depends on them, for a network of one shape throughout."""

    def first(index: int) -> int:
        own = set(trace.calls[index].module.parameters())
        return next((number for number, needed in enumerate(trace.features) if own & needed), len(trace.features))

    return [list(calls) for _, calls in groupby(units, key=first)]


def _is_one_layer(module: nn.Module) -> bool:
    return sum(any(True for _ in layer.parameters(recurse=False)) for layer in module.modules()) == 1


def _subtrees(
    trace: _Trace, owner: dict[nn.Parameter, int], ends: list[int], module: nn.Module, path: str = ""
) -> Iterator[tuple[str, int | None]]:
    """The largest subtrees below `module` that lie in one block each; None is the block that never runs."""
    for name, child in module.named_children():
        blocks = {owner.get(parameter) for parameter in child.parameters()}
        if not blocks and ends and child in trace.started:  # without parameters, a module belongs where it runs first
            blocks = {min(bisect_left(ends, trace.started[child]), len(ends) - 1)}
        if len(blocks) == 1 or not (blocks or any(True for _ in child.children())):
            yield path + name, blocks.pop() if blocks else None
        else:
            yield from _subtrees(trace, owner, ends, child, f"{path}{name}.")
