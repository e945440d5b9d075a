"""Evaluation of networks on a run's validation and test splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kd.data.batches.loading import EvalLoader
from kd.experiment.context import RunContext
from kd.networks.cost import latencies_ms, macs
from kd.networks.network import Segmenter
from kd.training.diagnostics import Diagnostics
from kd.training.evaluation import Evaluation, Labels, evaluate


class Evaluator:
    """Evaluates networks on the splits of a run; each split's loader is started once and reused."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._loaders: dict[str, EvalLoader] = {}

    def solo(self) -> "Evaluator":
        """An evaluator for this process alone, after the others have left."""
        return self if self.context.world.size == 1 else Evaluator(self.context.solo())

    def loader(self, split: str) -> EvalLoader:
        """The batches of a split."""
        if split not in self._loaders:
            context, batch_size = self.context, self.context.settings.trainer.batch_size
            self._loaders[split] = EvalLoader(context.samples, split, batch_size, context.loading)
        return self._loaders[split]

    def evaluate(self, network: Segmenter, split: str, reference: Sequence[Tensor] | None = None,
                 keep_labels: bool = False, diagnostics: Diagnostics | None = None) -> Evaluation:  # fmt: skip
        """Evaluate a network over a split; see `kd.training.evaluation.evaluate`."""
        precision, void = self.context.precision, self.context.data.void
        return evaluate(network, self.loader(split), precision, void, reference, keep_labels, diagnostics)


def _latency_ms(context: RunContext, network: Segmenter) -> float:
    return latencies_ms({"": network}, context.data.image_size, context.precision)[""]


def measure(
    evaluator: Evaluator, network: Segmenter, file: Path, diagnostics: Mapping[str, Diagnostics]
) -> tuple[dict[str, Any], Labels]:
    """A network's size, speed and metrics on validation and test (if there is one), and its validation labels.

    `file` holds its weights; `diagnostics` are filled, by split. Processes share the evaluation; the first one measures
    the latency.
    """
    context, world = evaluator.context, evaluator.context.world
    size = context.data.image_size
    validation = evaluator.evaluate(network, "val", keep_labels=True, diagnostics=diagnostics.get("val"))
    measured = {
        "parameters": network.count_parameters(),
        "macs": macs(network, size),
        "file_bytes": file.stat().st_size,
        "latency_ms": world.broadcast(_latency_ms(context, network) if world.is_main else None),
        **{f"val/{name}": value for name, value in validation.metrics(network.class_names).items()},
    }
    if context.data.size("test"):
        test = evaluator.evaluate(network, "test", diagnostics=diagnostics.get("test"))
        measured |= {f"test/{name}": value for name, value in test.metrics(network.class_names).items()}
    return measured, validation.pictures()
