"""The machine and the libraries that figures were measured with; on CUDA, how busy the GPU was, and how well used."""

import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.case import Case
from benchmarks.rounds import Times
from kd.system.environment import processor

LIBRARIES = ("torch", "segmentation-models-pytorch", "optuna", "mlflow", "hydra-core", "albumentations")
BUSY_SECONDS = 5.0  # for which a contestant trains on while its GPU is watched
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200")


def facts() -> dict[str, Any]:
    """Processor, cores, threads and memory, and the GPU where there is one."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        **({"bf16_peak_tflops": round(peak(torch.device("cuda")) / 1e12, 1)} if cuda else {}),
    }


def busy(seconds: float = 1.0) -> float:
    """The share of the processor, in [0, 1], that others use: where it is much, figures are worth less."""
    return psutil.cpu_percent(interval=seconds) / 100


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def peak(device: torch.device, side: int = 8192, times: int = 10) -> float:
    """The most bf16 operations per second that a product of two large square matrices reaches (2 n^3 each)."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(times + 2):
        _wait(device)
        begun = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def backward_of_convolution(
    gradient: Sequence[int], images: Sequence[int], weights: Sequence[int], bias: Any, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int, output_mask: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """Operations of a convolution's backward pass: as many as forward for each gradient that is asked for.

    torch 2.15 counts the gradient of the weights as if there were one group: a depthwise convolution of 96 channels
    comes out at 98 forward passes, forward and backward, where it is 3.
    """
    return conv_flop_count(images, weights, gradient, transposed) * sum(map(bool, output_mask[:2]))


#: What `operations` counts differently from torch.
COUNTED = {torch.ops.aten.convolution_backward: backward_of_convolution}


def operations(turn: Iterator[object]) -> int:
    """Floating point operations of one turn: of its matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        next(turn)
    return counter.get_total_flops()


def use_of_gpu(contestants: Mapping[str, Iterator[object]], times: Times, case: Case) -> dict[str, Any] | None:
    """Of each contestant: how busy the GPU was, in [0, 1], and its operations per second over the bf16 peak.

    None without CUDA.
    """
    device = case.bench.precision.device
    if device.type != "cuda":
        return None
    most, found = peak(device), {}
    for name, turns in contestants.items():
        with watched(device) as busy:
            end = time.perf_counter() + BUSY_SECONDS
            while time.perf_counter() < end:
                next(turns)
        done = operations(turns)  # 0 of what another process does
        share = done / statistics.median(times[name]) / most
        found[name] = {"busy": statistics.fmean(busy) / 100 if busy else None, "of_bf16_peak": share or None}
    return found


@contextmanager
def watched(device: torch.device) -> Iterator[list[float]]:
    """What nvidia-smi says of the GPU's use, in percent, while the block lasts; nothing where there is no such tool."""
    said: list[float] = []
    if shutil.which(NVIDIA_SMI[0]) is None:
        yield said
        return
    uuid = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"  # its numbers are not torch's
    process = subprocess.Popen([*NVIDIA_SMI, uuid], stdout=subprocess.PIPE, text=True)
    reader = threading.Thread(target=lambda: said.extend(map(float, process.stdout)), daemon=True)
    reader.start()
    try:
        yield said
    finally:
        process.terminate()
        process.wait()
        reader.join()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
