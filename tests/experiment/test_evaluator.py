"""Evaluation on a run's splits, and the measurements of a finished network."""

from dataclasses import replace

import pytest

from kd.config.compose import compose
from kd.config.read import read
from kd.data import Shapes
from kd.experiment.builders import build_diagnostics, build_network
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator, measure
from kd.networks import saved
from kd.system.world import World

TINY = [
    "backbone=tiny", "augment=none", "tracking=none", "trainer.device=cpu", "trainer.batch_size=4", "trainer.epochs=4",
    "data.image_size=[32,32]", "data.train=8", "data.val=3", "data.test=2", "optimizer.lr=0.01",
]  # fmt: skip


def context() -> RunContext:
    return RunContext.of(read(compose([*TINY, "unfreeze=all"])), [])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A network and its file."""
    network, file = build_network(context(), "student", 0), tmp_path_factory.mktemp("run") / "student.safetensors"
    saved.save(network, file)
    return network, file


def test_the_loader_of_a_split_is_started_once():
    evaluator = Evaluator(context())
    assert evaluator.loader("val") is evaluator.loader("val") is not evaluator.loader("test")


def test_an_evaluator_of_one_process_is_its_own_solo_evaluator_and_one_of_several_is_not():
    alone, shared = Evaluator(context()), Evaluator(replace(context(), world=World(0, 2)))
    assert alone.solo() is alone
    assert shared.solo().context.world.size == 1


class WithoutTest(Shapes):
    def size(self, split):
        return 0 if split == "test" else super().size(split)


def test_measurements_are_size_speed_and_the_metrics_of_validation_and_test(stored):
    network, file = stored
    evaluator = Evaluator(context())
    names = evaluator.context.data.class_names
    found, labels = measure(evaluator, network, file, {})
    metrics = ["loss", "miou", "dice", "iou/background", "iou/foreground", "dice/foreground"]
    expected = [
        "parameters",
        "macs",
        "file_bytes",
        "latency_ms",
        *(f"{s}/{m}" for s in ("val", "test") for m in metrics),
    ]
    assert list(found) == expected
    assert found["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert found["file_bytes"] == file.stat().st_size > 4 * found["parameters"]
    for split in ("val", "test"):
        evaluated = evaluator.evaluate(network, split).metrics(names)
        assert {name: found[f"{split}/{name}"] for name in evaluated} == evaluated
    assert labels.shape == (3, 32, 32)
    assert (
        evaluator.evaluate(network, "val", labels.split(evaluator.context.settings.trainer.batch_size)).agreement == 1.0
    )


def test_measuring_fills_the_diagnostics_of_each_split(stored):
    network, file = stored
    evaluator = Evaluator(context())
    diagnostics = build_diagnostics(evaluator.context)
    found, _ = measure(evaluator, network, file, diagnostics)
    assert {split: len(each.tensors()["scores"]) for split, each in diagnostics.items()} == {"val": 3, "test": 2}
    assert found == measure(evaluator, network, file, {})[0] | {"latency_ms": found["latency_ms"]}


def test_without_a_test_split_there_are_no_metrics_of_it(stored):
    network, file = stored
    data = WithoutTest(image_size=(32, 32), val=3)
    settings = context().settings.model_copy(update={"data": data})
    found, _ = measure(Evaluator(replace(context(), settings=settings)), network, file, {})
    assert not [name for name in found if name.startswith("test/")]
    assert "val/miou" in found
