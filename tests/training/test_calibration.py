"""Expected calibration error: a slow and obvious reference, closed forms, and what must not matter."""

import math

import pytest
import torch

from kd.training.calibration import BINS, COLUMNS, Calibration, confidence, expected_error, overconfidence
from kd.training.metrics import predict_labels

VOID = 255


def batch(classes, seed=0, size=(3, 8, 9), scale=3.0, void=False):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(size[0], classes, *size[1:], generator=random) * scale
    mask = torch.randint(0, max(classes, 2), size, generator=random).to(torch.uint8)
    if void:
        mask[:, :2] = VOID
    return logits, mask


def table(*batches, void=None) -> torch.Tensor:
    counted = Calibration()
    for logits, mask in batches:
        counted.add(logits, predict_labels(logits), mask, void)
    return counted.table()


def slow(logits, mask, void=None) -> tuple[float, float]:
    """ECE and mean confidence minus accuracy, pixel by pixel, with the softmax of (0, z) where there is one logit."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    bins = [[] for _ in range(BINS)]
    for image, truth in zip(logits, mask, strict=True):
        for y in range(truth.shape[0]):
            for x in range(truth.shape[1]):
                if void is not None and truth[y, x] == void:
                    continue
                p, label = image[:, y, x].double().softmax(0).max(0)
                number = min(max(math.ceil(float(p) * BINS), 1), BINS)
                bins[number - 1].append((float(p), float(label == truth[y, x])))
    total = sum(map(len, bins))
    gaps = [sum(p for p, _ in found) - sum(right for _, right in found) for found in bins]
    return sum(map(abs, gaps)) / total, sum(gaps) / total


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("void", [None, VOID])
def test_the_error_equals_a_slow_reference(classes, void):
    logits, mask = batch(classes, void=void is not None)
    found = table((logits, mask), void=void)
    error, over = slow(logits, mask, void)
    assert expected_error(found) == pytest.approx(error, abs=1e-6)
    assert overconfidence(found) == pytest.approx(over, abs=1e-6)


def test_batches_add_up_to_their_whole():
    logits, mask = batch(4, size=(6, 8, 9))
    parts = table(*((logits[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4)))
    torch.testing.assert_close(parts, table((logits, mask)), rtol=1e-12, atol=1e-9)
    assert parts.shape == (BINS, len(COLUMNS))
    assert int(parts[:, 0].sum()) == mask.numel()


@pytest.mark.parametrize(("right", "error", "over"), [(80, 0.0, 0.0), (50, 0.3, 0.3), (100, 0.2, -0.2)])
def test_a_network_that_says_eighty_percent_is_as_good_as_it_is_right(right, error, over):
    """100 pixels, all foreground with p = 0.8: ECE is the gap between 0.8 and the share that is right."""
    logits = torch.full((1, 1, 10, 10), math.log(4))
    mask = torch.zeros(100, dtype=torch.uint8)
    mask[:right] = 1
    found = table((logits, mask.view(1, 10, 10)))
    assert expected_error(found) == pytest.approx(error, abs=1e-6)
    assert overconfidence(found) == pytest.approx(over, abs=1e-6)


def test_one_logit_is_as_confident_as_two():
    logits, _ = batch(1)
    torch.testing.assert_close(confidence(logits), confidence(torch.cat([torch.zeros_like(logits), logits], dim=1)))


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one():
    counted = Calibration()
    sure = torch.tensor([0.6])  # 9 / 15
    logits = torch.logit(sure).view(1, 1, 1, 1)
    counted._edges = torch.cat([counted._edges[:8], confidence(logits).flatten(), counted._edges[9:]])
    counted.add(logits, predict_labels(logits), torch.ones(1, 1, 1, dtype=torch.uint8), None)
    assert counted.table()[:, 0].argmax() == 8


def test_an_all_void_split_has_no_calibration_error():
    logits, mask = batch(3)
    found = table((logits, torch.full_like(mask, VOID)), void=VOID)
    assert expected_error(found) is None
    assert overconfidence(found) is None
