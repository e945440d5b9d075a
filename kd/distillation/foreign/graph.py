"""A graph of torch.export, gone through node by node: data that names operators, and never code.

A node may only name an operator of torch's own arithmetic (aten), or arithmetic of sizes (docs/adr/0011).
"""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

#: Numbers in the file, as torch._export.serde.schema has them: ScalarType, MemoryFormat, Layout.
DTYPES = {1: torch.uint8, 2: torch.int8, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
          8: torch.float64, 12: torch.bool, 13: torch.bfloat16}  # fmt: skip
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
STRIDED = 7
#: What is done with sizes.
SIZES: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name)
       for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "ge", "gt", "le", "lt", "eq", "ne")},
    "torch.sym_max": max, "torch.sym_min": min, "torch.sym_int": int, "torch.sym_float": float,
    "math.ceil": math.ceil, "math.floor": math.floor, "math.trunc": math.trunc,
}  # fmt: skip
#: Assertions of the exporter's, on sizes that the network then meets anyway.
SKIPPED = {"_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"}
#: Text that an operator may be given; `filename` is not among it.
WORDS = {"rounding_mode", "mode", "padding", "padding_mode", "approximate", "indexing", "equation"}
TRAINING = {"training", "train"}
#: Of torch's private operators, which trust their caller, those that exporters write.
PRIVATE = {"_adaptive_avg_pool2d", "_log_softmax", "_native_batch_norm_legit_no_training", "_prelu_kernel", "_softmax",
           "_scaled_dot_product_flash_attention_for_cpu", "_to_copy", "_unsafe_index", "_unsafe_view",
           "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """The value of that name."""

    name: str


class OfDevice:
    """The device of the pictures, whatever device the file names."""


@dataclass(frozen=True)
class Step:
    """A node: what to call, with what, how to name what comes back, and which values nobody needs afterwards."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str | None, ...]
    single: bool
    over: tuple[str, ...] = ()


class Refused(Exception):
    """What is wrong with a program."""


class Program(nn.Module):
    """A graph of aten operators: float pixels B x 3 x H x W in, the first output out."""

    def __init__(self, steps: list[Step], tensors: dict[str, Tensor], constants: dict[str, Any], ends: tuple[str, str]):
        super().__init__()
        self.steps, self.constants, (self.input, self.output) = steps, constants, ends
        self.names = tuple(tensors)
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"tensor_{number}", tensor, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        values = dict(zip(self.names, self.buffers(), strict=True)) | self.constants | {self.input: pixels}
        for step in self.steps:
            args, kwargs = _filled((step.args, step.kwargs), values, pixels.device)
            result = step.call(*args, **kwargs)
            given = [result] if step.single else result
            values |= {name: value for name, value in zip(step.names, given, strict=False) if name is not None}
            for name in step.over:
                values.pop(name, None)
        logits: Tensor = values[self.output]
        return logits


def _filled(value: Any, values: dict[str, Any], device: torch.device) -> Any:
    """Arguments with values in the place of names."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, OfDevice):
        return device
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, values, device) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, values, device) for key, item in value.items()}
    return value


def is_skipped(node: dict[str, Any]) -> bool:
    return node["target"].removeprefix("torch.ops.aten.").partition(".")[0] in SKIPPED


def step(node: dict[str, Any]) -> Step:
    target, given = node["target"], {each["name"]: argument_of(each["arg"]) for each in node["inputs"]}
    names, single = _names(node["outputs"])
    if target in SIZES:
        return Step(SIZES[target], tuple(argument_of(each["arg"]) for each in node["inputs"]), {}, names, single)
    if any(given.get(name) is True for name in TRAINING):
        raise Refused("was exported in training mode")
    call, args = aten(target), []
    for argument in call._schema.arguments:  # by place, as far as there is no gap: some have names like `self`
        if argument.kwarg_only or argument.name not in given:
            break
        args.append(given.pop(argument.name))
    return Step(call, tuple(args), given, names, single)


def aten(target: str) -> Any:
    """The operator of that name.

    Raises:
        Refused: it is none of aten's, or what it takes in words (the name of a file?) is not known to be harmless.
    """
    found = re.fullmatch(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z]\w*)", target, re.ASCII)
    known = found and (found[1] in PRIVATE or not found[1].startswith("_"))
    call = getattr(getattr(torch.ops.aten, found[1], None), found[2], None) if found and known else None
    if not isinstance(call, torch._ops.OpOverload) or call.namespace != "aten":
        raise Refused(f"uses {target[:100]}, which is no arithmetic of torch's own")
    words = {argument.name for argument in call._schema.arguments if "str" in str(argument.type)}
    if not words <= WORDS or not call._schema.returns:
        raise Refused(f"uses {target[:100]}, which may do more than arithmetic")
    return call


def _names(outputs: list[dict[str, Any]]) -> tuple[tuple[str | None, ...], bool]:
    """The names of what a node gives, and whether it gives one value rather than several."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        return tuple(each["name"] for each in outputs[0]["as_tensors"]), False
    return tuple(_name(output) for output in outputs), len(outputs) == 1


def _name(output: dict[str, Any]) -> str | None:
    ((kind, value),) = output.items()
    if kind == "as_none":
        return None
    return str(value["name"] if kind == "as_tensor" else value["as_name"])


def argument_of(argument: dict[str, Any]) -> Any:
    """An argument as it is, with names where values will stand."""
    ((kind, value),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return Ref(value["name"])
        case "as_tensors":
            return [Ref(each["name"]) for each in value]
        case "as_bool" | "as_int" | "as_bools" | "as_ints" | "as_string":
            return value
        case "as_float":
            return float(value)
        case "as_floats":
            return [float(each) for each in value]
        case "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return Ref(value["as_name"]) if "as_name" in value else next(iter(value.values()))
        case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
            return [argument_of({kind[:-1]: each}) for each in value]
        case "as_optional_tensor":
            return argument_of(value)
        case "as_optional_tensors":
            return [argument_of(each) for each in value]
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return FORMATS[value]
        case "as_device":
            return OfDevice()
        case "as_layout" if value == STRIDED:
            return torch.strided
    raise Refused(f"gives an operator something that is not read ({kind[:40]})")


def with_ends(steps: list[Step], output: str) -> list[Step]:
    """The same steps; each says which values are needed no more after it."""
    seen, ended = {output}, []
    for step in reversed(steps):
        used = set(_refs((step.args, step.kwargs))) | {name for name in step.names if name}
        ended.append(replace(step, over=tuple(used - seen)))
        seen |= used
    return ended[::-1]


def _refs(value: Any) -> list[str]:
    if isinstance(value, Ref):
        return [value.name]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [name for item in items for name in _refs(item)]
