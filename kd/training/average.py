"""An exponential moving average of a network's weights over the steps, measured beside the raw weights.

Batch-norm statistics are averaged with the weights, so that no pass over the data is needed before a measurement;
counters (whole numbers) stay the raw network's. The decay of step t is min(decay, (1 + t) / (10 + t)), so that the
random weights of the first steps are soon forgotten: the average depends on the weights and the number of steps alone.
A frozen block's average is its weights, bit for bit.

Reference: Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992; the decay of the first steps is that of
`tf.train.ExponentialMovingAverage`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kd.training.quality import improves

AVERAGE = "average."  # in the names of a snapshot's tensors
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Averaging:
    """How weights are averaged, and which are saved: the better by the objective, or always average or raw."""

    decay: float
    saves: str = "better"
    objective: str = "val/miou"

    def of_step(self, step: int) -> float:
        """The decay of a zero-based step."""
        return min(self.decay, (1 + step) / (10 + step))

    def takes_average(self, raw: Mapping[str, float | None], average: Mapping[str, float | None]) -> bool:
        """Whether the average's weights are saved, by both metrics without `val/`; the raw ones on ties."""
        if self.saves != "better":
            return self.saves == "average"
        one, other = ({f"val/{name}": value for name, value in each.items()} for each in (average, raw))
        return improves(one, other, self.objective)


class Average:
    """The average of a network's weights and statistics; initially a copy."""

    def __init__(self, network: nn.Module, averaging: Averaging) -> None:
        self.network, self.averaging = network, averaging
        self.tensors = {name: value.detach().clone() for name, value in self._own().items()}

    def update(self, step: int) -> None:
        """Take in the weights after a zero-based step of the training."""
        own = self._own()
        lerp = get_ema_multi_avg_fn(self.averaging.of_step(step))  # type: ignore[no-untyped-call]
        lerp([*self.tensors.values()], [own[name] for name in self.tensors], None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the network until the block ends."""
        before = {name: value.clone() for name, value in self._own().items()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(before)

    def measured(self, validate: Callable[[], Metrics]) -> tuple[Metrics, bool]:
        """Validation metrics of the weights to be saved, and whether these are the average's.

        What has no slash in its name, and the objective, is there of both, as raw/... and average/...; `averaged` is 1
        if the metrics are the average's.
        """
        raw = validate()
        with self.in_place():
            average = validate()
        takes, objective = self.averaging.takes_average(raw, average), self.averaging.objective.removeprefix("val/")
        both = {
            f"{who}/{name}": value
            for who, metrics in (("raw", raw), ("average", average))
            for name, value in metrics.items()
            if "/" not in name or name == objective
        }
        return {**(average if takes else raw), **both, "averaged": int(takes)}, takes

    def state(self) -> dict[str, Tensor]:
        """Tensors for a snapshot."""
        return {AVERAGE + name: value for name, value in self.tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a snapshot."""
        for name, value in self.tensors.items():
            value.copy_(tensors[AVERAGE + name])

    def _own(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.network.state_dict().items() if value.is_floating_point()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._own().items():
            value.copy_(values[name])
