"""The cost of a network: latency and multiply-adds."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kd.networks.network import Network, Segmenter, eval_mode
from kd.networks.precision import Precision

Name = TypeVar("Name", bound=Hashable)


def seconds_in_turn(calls: Mapping[Name, Callable[[], Any]], rounds: int, warm_up: int) -> dict[Name, list[float]]:
    """Wall time of each call in each round, after `warm_up` uncounted rounds.

    Every round runs all calls in turn, so that a drift in the machine's speed affects them equally.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@torch.no_grad()
def latencies_ms(
    networks: Mapping[Name, Segmenter], image_size: tuple[int, int], precision: Precision, rounds: int = 11
) -> dict[Name, float]:
    """Median milliseconds of each network from one H x W image to its logits, batch 1, after two warm-up calls.

    They are timed in turn, so that their ratio is that of one moment.
    """

    def call(network: Segmenter, image: Tensor) -> None:
        with precision.autocast():
            network(image).sum().item()  # .item() synchronises

    calls = {name: partial(call, each, each.black(1, image_size, precision.device)) for name, each in networks.items()}
    with ExitStack() as modes:
        for network in networks.values():
            modes.enter_context(eval_mode(network))
        seconds = seconds_in_turn(calls, rounds, warm_up=2)
    return {name: statistics.median(each) * 1000 for name, each in seconds.items()}


_macs: dict[tuple[object, ...], int] = {}  # cached, since a study asks often


@torch.no_grad()
def macs(network: Segmenter, image_size: tuple[int, int]) -> int | None:
    """Multiply-adds for one H x W image, of convolutions and matrix products, which are nearly all.

    Half of the operations that `torch.utils.flop_counter` counts; None for a foreign network, which may not run in
    torch.
    """
    if not isinstance(network, Network):
        return None
    key = (network.settings.arch.lower(), network.settings.encoder, network.count_parameters(), image_size)
    if key not in _macs:
        device = next(network.parameters()).device
        with eval_mode(network), FlopCounterMode(display=False) as counter:
            network(network.black(1, image_size, device))
        _macs[key] = counter.get_total_flops() // 2
    return _macs[key]
