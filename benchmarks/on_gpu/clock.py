"""Time on the device: between two moments of its own queue, without waiting for it; on a CPU, by the clock."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> Any:
    """This moment in the device's queue."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(moments: Sequence[Any], device: torch.device) -> list[float]:
    """Between each moment and the next; waits for the device."""
    wait(device)
    pairs = pairwise(moments)
    if device.type != "cuda":
        return [1000 * (after - before) for before, after in pairs]
    return [before.elapsed_time(after) for before, after in pairs]


def least_ms(function: Callable[[], object], device: torch.device, times: int, warm_up: int = 2) -> float:
    """The least milliseconds on the device that a call took."""
    for _ in range(warm_up):
        function()
    found = []
    for _ in range(times):
        before = now(device)
        function()
        found += milliseconds([before, now(device)], device)
    return min(found)
