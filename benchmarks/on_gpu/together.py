"""What several processes share: batch norms of torch's own kernels, and a training of two on one GPU against one."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.setting import apart, context_of, live, pair, relative, tf32, training
from benchmarks.on_gpu.supervise import On, forks
from kd.experiment.builders import build_train_loader
from kd.system.world import SOLO, World
from kd.training.replica import digest
from kd.training.whole_batch import batch_norm

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to the largest number, of outputs and gradients
Norm = Callable[..., Tensor]


def normalised(on: On) -> None:
    """A process alone, by NCCL where there is a GPU: forward and backward against torch's own batch norm."""
    with TemporaryDirectory() as place:
        world = _meet(0, 1, Path(place) / "store", "cpu:gloo,cuda:nccl" if on.device == "cuda" else "gloo")
        for dtype, close in CLOSE.items():
            for layout in (torch.contiguous_format, torch.channels_last):
                found = _against_torch(torch.device(on.device), dtype, layout, world)
                name = f"{str(dtype).removeprefix('torch.')}, {str(layout).removeprefix('torch.')}"
                on.note(**{name: found})
                on.check(f"{name}: within {close:g} of torch's", max(found.values()) <= close)
        dist.destroy_process_group()


def _against_torch(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, world: World
) -> dict[str, float]:
    """How far this process's rows are from those of the whole batch's, relative to the largest number."""
    torch.manual_seed(0)
    inputs = (torch.randn(8, 48, 20, 20, device=device) * 3 + 1).to(dtype).contiguous(memory_format=layout)
    upstream, rows = torch.randn_like(inputs), world.rows(len(inputs))
    ours = _both_ways(lambda *args: batch_norm(world, *args), inputs[rows], upstream[rows])
    expected = _both_ways(lambda x, mean, var, w, b: F.batch_norm(x, mean, var, w, b, True), inputs, upstream)
    found = {}
    for name, value in ours.items():
        if name.startswith("sum of"):  # a process has its own rows' part of a parameter's gradient
            value = world.total(value)
        reference = expected[name][rows] if name in ("outputs", "gradient") else expected[name]
        found[name] = ((value - reference).abs().max() / reference.abs().max()).item()
    return found


def _both_ways(norm: Norm, inputs: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Outputs, the gradients of inputs and parameters, and the running statistics, as fp32."""
    inputs, channels = inputs.detach().clone().requires_grad_(), inputs.shape[1]
    weight, bias = (torch.linspace(0.5, 1.5, channels, device=inputs.device).requires_grad_() for _ in range(2))
    mean, var = torch.zeros(channels, device=inputs.device), torch.ones(channels, device=inputs.device)
    outputs = norm(inputs, mean, var, weight, bias)
    (outputs * upstream).sum().backward()
    found = {"outputs": outputs, "gradient": inputs.grad, "sum of weight": weight.grad, "sum of bias": bias.grad}
    return {name: value.detach().float() for name, value in (found | {"mean": mean, "var": var}).items()}


def two_processes(on: On) -> None:
    """Two processes that share the GPU and talk by gloo, against one: a batch norm, and a training in fp32."""
    size = (64, 4, 2) if on.small else (128, 8, 6)
    with TemporaryDirectory() as place:
        started = [_start(Path(place), on, size, rank, count) for rank, count in ((0, 1), (0, 2), (1, 2))]
        for process in started:
            process.join()
        codes = [process.exitcode for process in started]
        if any(codes):
            raise RuntimeError(f"the processes ended with {codes}")
        alone, first, second = (torch.load(Path(place) / name) for name in ("0-1.pt", "0-2.pt", "1-2.pt"))
    on.note(batch_norm=first["batch_norm"], ms_a_step={"one": alone["ms"], "two": first["ms"]})
    on.check("batch norm: within 1e-5 of torch's over the whole", max(first["batch_norm"].values()) <= 1e-5)
    differences = [relative(*each) for each in zip(first["losses"], alone["losses"], strict=True)]
    on.note(losses=differences, weights=_apart(first["weights"], alone["weights"]))
    on.check("first loss within 1e-5 of one process's", differences[0] <= 1e-5)
    on.check("second loss within 1e-3 of one process's", differences[1] <= 1e-3)
    on.check("both processes hold the same weights", first["digest"] == second["digest"])


def _start(place: Path, on: On, size: tuple[int, int, int], rank: int, count: int) -> Any:
    process = forks.Process(target=_process, args=(place, replace(on, file=None, found={}), size, rank, count))
    process.start()
    return process


def _process(place: Path, on: On, size: tuple[int, int, int], rank: int, count: int) -> None:
    """One of `count` processes: leaves what it found in a file."""
    side, batch, steps = size
    if on.device == "cpu":
        torch.set_num_threads(1)
    world = _meet(rank, count, place / f"store-{count}", "gloo")
    context = replace(context_of(on, side, batch, batch, 1), world=world)
    with tf32(False):
        found: dict[str, Any] = {"batch_norm": _against_torch(torch.device(on.device), torch.float32,
                                                              torch.channels_last, world)}  # fmt: skip
        student, teacher = pair(replace(context, world=SOLO))
        epochs = training(context, student, live(teacher, context), build_train_loader(context, 0))
        found["losses"] = [next(epochs).train["loss"]]
        begun = time.perf_counter()
        found["losses"] += [result.train["loss"] for result in islice(epochs, steps - 1)]
    found["ms"] = 1000 * (time.perf_counter() - begun) / (steps - 1)
    found |= {"digest": digest(student), "weights": [each.detach().cpu() for each in student.parameters()]}
    torch.save(found, place / f"{rank}-{count}.pt")
    dist.destroy_process_group()


def _apart(ours: list[Tensor], others: list[Tensor]) -> float:
    return apart(*(torch.nn.ParameterList(each) for each in (ours, others)))


def _meet(rank: int, size: int, file: Path, backend: str) -> World:
    """Join the others through a file; `kd.system.world.joined` would give each process a GPU of its own."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # a machine without a network may not know its own name
    store = dist.FileStore(str(file), size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    if size == 1:
        return SOLO
    return World(rank, size, rank, size, objects=dist.new_group(backend="gloo"), store=store)
