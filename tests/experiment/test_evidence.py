"""What a run writes for its report: the trivial baseline against a loop, the worst and best images, their pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.experiment.evidence import (
    MASKS,
    SIDE,
    baseline_metrics,
    majority_labels,
    peak_memory,
    thumbnail,
    worst_and_best,
)
from kd.training.diagnostics import Diagnostics
from kd.training.metrics import Confusion

VOID = 255


def masks(count, labels, size=(4, 6), void=False, seed=0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    found = [random.integers(0, labels, size, dtype=np.uint8) for _ in range(count)]
    for mask in found if void else ():
        mask[random.random(size) < 0.4] = VOID
    return found


@pytest.mark.parametrize("void", [None, VOID])
@pytest.mark.parametrize("labels", [2, 5])
def test_the_trivial_baseline_is_the_most_frequent_label_of_each_pixel(labels, void):
    found = masks(9, labels, void=void is not None)
    majority = majority_labels(found.__getitem__, 9, labels, (4, 6), void)
    assert majority.dtype == torch.uint8
    for y in range(4):
        for x in range(6):
            seen = [int(mask[y, x]) for mask in found if mask[y, x] != VOID]
            if seen:
                most = max(seen.count(label) for label in range(labels))
                assert int(majority[y, x]) == min(label for label in range(labels) if seen.count(label) == most)


def test_a_pixel_that_is_void_in_all_masks_gets_the_most_frequent_label_overall():
    found = masks(5, 3)
    for mask in found:
        mask[mask == 0] = 2
        mask[0, 0] = VOID
    assert int(majority_labels(found.__getitem__, 5, 3, (4, 6), VOID)[0, 0]) == 2


def test_no_more_masks_are_read_than_the_limit():
    read = []
    majority_labels(lambda index: read.append(index) or np.zeros((2, 2), np.uint8), 10 * MASKS, 2, (2, 2), None)
    assert len(read) == len(set(read)) == MASKS
    assert (min(read), max(read)) == (0, 10 * MASKS - 1)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.floats(0, 1, width=32), st.just(float("nan"))), max_size=12))
def test_the_worst_and_the_best_are_the_ends_of_the_order_and_share_no_image(values):
    scores = torch.tensor(values)
    found = worst_and_best(scores)
    known = [index for index, value in enumerate(values) if value == value]
    assert not set(found["worst"]) & set(found["best"])
    assert [values[i] for i in found["worst"]] == sorted(values[i] for i in known)[: len(found["worst"])]
    assert [values[i] for i in found["best"]] == sorted((values[i] for i in known), reverse=True)[: len(found["best"])]
    assert len(found["worst"]) + len(found["best"]) == min(6, len(known))


def test_thumbnails_have_at_most_the_given_side_and_labels_are_not_interpolated():
    image = np.random.default_rng(0).integers(0, 256, (2 * SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.random.default_rng(0).choice(np.array([0, 7, VOID], np.uint8), (2 * SIDE, SIDE))
    assert tuple(thumbnail(image).shape) == (SIDE, SIDE // 2, 3)
    assert tuple(thumbnail(labels).shape) == (SIDE, SIDE // 2)
    assert set(thumbnail(labels).unique().tolist()) <= {0, 7, VOID}
    assert np.array_equal(thumbnail(labels[:64, :64]).numpy(), labels[:64, :64])
    assert not np.shares_memory(thumbnail(labels[:64, :64]).numpy(), labels)


def test_the_baselines_metrics_are_those_of_a_network_that_predicts_it():
    names, usual = ("background", "cell"), torch.tensor([[0, 1], [1, 1]])
    truth = torch.tensor([[[0, 1], [1, 1]], [[0, 1], [0, 0]]])
    seen, unseen = (Diagnostics(2, None, baseline_HW=usual) for _ in range(2))
    seen.add(0, torch.zeros(2, 2, 2, dtype=torch.uint8), truth)
    confusion = Confusion(2)
    confusion.add(usual.expand(2, 2, 2), truth)
    found = baseline_metrics({"val": seen, "test": unseen}, names)
    assert found == {f"val/{name}": value for name, value in confusion.summary(names).items()}
    assert found["val/iou/cell"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("foreground", [0, 1, 5, 16])
def test_the_foreground_is_compared_with_foreground_everywhere_where_that_is_better(foreground):
    names, seen = ("background", "cell"), Diagnostics(2, 255, baseline_HW=torch.zeros(4, 5, dtype=torch.uint8))
    truth = torch.tensor([1] * foreground + [0] * (16 - foreground) + [255] * 4, dtype=torch.uint8).view(1, 4, 5)
    seen.add(0, torch.zeros_like(truth), truth)
    found, share = baseline_metrics({"val": seen}, names), foreground / 16
    assert found["val/iou/cell"] == (share or None)
    assert found["val/dice/cell"] == (pytest.approx(2 * share / (1 + share)) if share else None)
    assert found["val/iou/background"] == (1 - share or None if foreground < 16 else 0)
    assert found["val/miou"] == seen.baseline.summary(names)["miou"]


def test_peak_memory_is_in_bytes():
    ballast = torch.ones(50_000_000, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu"))["process_bytes"] > len(ballast)
