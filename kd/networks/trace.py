"""One forward pass of an encoder without data: which modules ran, in what order, and what they depend on.

A copy of the encoder runs with its parameters on the meta device, so nothing is computed and the encoder itself is not
touched. Dependencies are read from the autograd graph.
"""

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

# Sides in pixels, tried in turn: most encoders take any multiple of 32, some only the one size they were built for.
IMAGE_SIZES = (256, 224, 384, 448, 512, 160, 192, 240, 288, 320, 336)


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    module: nn.Module
    positions: int  # pixels or tokens in its output, or in the smallest of several
    channels: int
    nodes: tuple[Node, ...]  # of its outputs in the autograd graph
    skips: bool  # whether a skip connection bypasses its parameters


@dataclass(frozen=True)
class Trace:
    """One forward pass of the copy on the meta device."""

    copy: nn.Module
    calls: list[Call]  # in order of completion
    started: dict[nn.Module, int]  # the number of complete calls when a module first completed
    features: list[set[nn.Parameter]]  # the parameters that each feature depends on

    @property
    def used(self) -> set[nn.Parameter]:
        return set().union(*self.features)


def trace(encoder: nn.Module) -> Trace | None:
    """Trace a forward pass at the first image size that `encoder` accepts; None, with a warning, if it accepts none."""
    refusals = []
    for size in IMAGE_SIZES:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return _run(on_meta(encoder), size, getattr(encoder, "_in_channels", 3))
        except Exception as error:  # encoders refuse a size with any kind of exception
            refusals.append(error)
    name = type(encoder).__name__
    warnings.warn(f"{name} does not run without data, so it is unfrozen as one block: {refusals[0]}", stacklevel=3)
    return None


def on_meta(encoder: nn.Module) -> nn.Module:
    """A copy without data, in eval mode, with gradients for every parameter, so that autograd sees them all."""
    memo: dict[int, Tensor] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in encoder.buffers()}
    for parameter in encoder.parameters():
        differentiable = parameter.is_floating_point()
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=differentiable)
    return copy.deepcopy(encoder, memo).eval()


def _run(encoder: nn.Module, size: int, in_channels: int) -> Trace:
    calls: list[Call] = []
    started: dict[nn.Module, int] = {}

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        started.setdefault(module, len(calls))
        outputs = _in_graph(output)
        if outputs and any(True for _ in module.parameters()):
            positions, channels = min((_geometry(tensor) for tensor, _ in outputs), key=lambda geometry: geometry[0])
            nodes = tuple(node for _, node in outputs)
            skips = _skips({node for _, node in _in_graph(inputs)}, nodes[0])
            calls.append(Call(module, positions, channels, nodes, skips))

    for module in encoder.modules():
        module.register_forward_hook(record)
    dtype = next((parameter.dtype for parameter in encoder.parameters() if parameter.is_floating_point()), None)
    features = encoder(torch.empty(1, in_channels, size, size, dtype=dtype, device="meta"))
    return Trace(encoder, calls, started, [upstream([node], set()) for _, node in _in_graph(features)])


def _in_graph(values: object) -> list[tuple[Tensor, Node]]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return [(tensor, tensor.grad_fn) for tensor in tensors if tensor.grad_fn is not None]


def _geometry(output: Tensor) -> tuple[int, int]:
    """Positions and channels of a square feature map, NCHW or NHWC, or of tokens, NLC, for one image."""
    shape = output.shape
    channels = shape[1] if len(shape) == 4 and shape[2] == shape[3] else shape[-1]
    return output.numel() // channels, channels


def _skips(sources: set[Node], output: Node) -> bool:
    """Whether additions and parameterless operations with one input lead from `output` back to `sources`."""
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


def upstream(nodes: Iterable[Node], seen: set[Node]) -> set[nn.Parameter]:
    """The parameters that `nodes` depend on, except those only reachable through nodes in `seen`; extends `seen`."""
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
