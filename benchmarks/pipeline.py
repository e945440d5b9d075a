"""How fast images come, against how fast a step eats them, and what each transform of an augmentation costs."""

import copy
import statistics
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from benchmarks.case import Case
from benchmarks.rounds import race, spread
from kd.config.compose import compose, plain
from kd.config.transforms import build_transforms
from kd.data.source import Source
from kd.data.views.augmentation import Augmentation

RECIPES = ("light", "heavy")
SAMPLES = 32  # that each transform is timed on


def measured(case: Case) -> dict[str, Any]:
    """Images per second of each part of the pipeline, and of the steps that it feeds; microseconds per transform."""
    data, images = case.bench.data, case.sizes.steps * case.sizes.batch
    decoded = [data.read("train", index) for index in range(images)]
    parts = {
        "decode": _decode(data, images),
        "kept": _decode(case.bench.samples, images),
        **{f"augment_{name}": _augment(_recipe(name), decoded) for name in RECIPES},
        "loader": _drain(case.loader()),
        "steps_frozen": case.fit(case.remembered, None, "frozen"),
        "steps_unfrozen": case.fit(case.remembered, None, "unfrozen"),
    }
    times = race(parts, case.sizes.rounds, case.sizes.warm_up)
    speeds = {name: spread([images / each for each in seconds]) for name, seconds in times.items()}
    return {
        "images_per_second": speeds,
        "transforms_us": {name: _profiled(_recipe(name), decoded[:SAMPLES]) for name in RECIPES},
    }


def _decode(data: Source, images: int) -> Iterator[None]:
    while True:
        for index in range(images):
            data.read("train", index)
        yield


def _augment(transforms: list[Any], decoded: list[Any]) -> Iterator[None]:
    augmentation = Augmentation(transforms, seed=0)
    for view in count():
        for index, (image, mask) in enumerate(decoded):
            augmentation(image, mask, view, index)
        yield


def _drain(loader: Any) -> Iterator[None]:
    for epoch in count():
        for _ in loader.epoch(epoch):
            pass
        yield


def _recipe(name: str) -> list[Any]:
    return build_transforms(plain(compose([f"augment={name}"]))["augment"]["transforms"])


def _profiled(transforms: list[Any], decoded: list[Any]) -> dict[str, dict[str, float]]:
    """Microseconds per sample of each transform: where it is applied, and on average, as rarely as it is.

    The second is the first times its probability. What it costs to ask for a view at all is `none`.
    """
    bare = _seconds([], decoded)
    found = {"none": {"applied": bare * 1e6, "mean": bare * 1e6}}
    for transform in transforms:
        always = copy.deepcopy(transform)
        always.p = 1.0
        cost = max(0.0, _seconds([always], decoded) - bare) * 1e6
        found[type(transform).__name__] = {"applied": cost, "mean": cost * transform.p}
    return found


def _seconds(transforms: list[Any], decoded: list[Any]) -> float:
    """The median time of one sample."""
    augmentation, found = Augmentation(transforms, seed=0), []
    for view in range(2):  # the first one warms up
        for index, (image, mask) in enumerate(decoded):
            begun = time.perf_counter()
            augmentation(image, mask, view, index)
            found.append(time.perf_counter() - begun)
    return statistics.median(found[len(decoded) :])
