"""Laws of the metrics. References: a slow loop over pixels, and smp.metrics with its counts summed over the split."""

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.training.metrics import Confusion, mean, predict_labels

VOID = 255
label_counts, seeds = st.integers(2, 6), st.integers(0, 10_000)


def split(labels, seed, batches=3, void=False):
    """Batches of (predicted, mask), each B x H x W; right about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(batches):
        mask = torch.randint(0, labels, (2, 5, 4), generator=generator)
        guess = torch.randint(0, labels, mask.shape, generator=generator)
        predicted = torch.where(torch.rand(mask.shape, generator=generator) < 0.5, mask, guess)
        if void:
            mask = mask.masked_fill(torch.rand(mask.shape, generator=generator) < 0.3, VOID)
        pairs.append((predicted.to(torch.uint8), mask.to(torch.uint8)))
    return pairs


def counted(pairs, labels, ignore_index=None):
    """The confusion of batches, added one by one."""
    confusion = Confusion(labels, ignore_index)
    for predicted, mask in pairs:
        confusion.add(predicted, mask)
    return confusion


def slow_counts(pairs, labels, ignore_index=None):
    """counts[true][predicted], one pixel at a time."""
    counts = [[0] * labels for _ in range(labels)]
    for predicted, mask in pairs:
        for guess, truth in zip(predicted.flatten().tolist(), mask.flatten().tolist(), strict=True):
            if truth != ignore_index:
                counts[truth][guess] += 1
    return counts


def slow_sets(pairs, label, ignore_index=None):
    """The pixels whose truth is `label` and those predicted as it, as two sets of positions."""
    truth, guess = set(), set()
    for batch, (predicted, mask) in enumerate(pairs):
        for at, (p, t) in enumerate(zip(predicted.flatten().tolist(), mask.flatten().tolist(), strict=True)):
            if t != ignore_index:
                truth |= {(batch, at)} if t == label else set()
                guess |= {(batch, at)} if p == label else set()
    return truth, guess


def image(*values):
    """One image of a single row of pixels, 1 x 1 x W."""
    return torch.tensor([[values]])


# references


@given(label_counts, seeds, st.booleans())
@settings(deadline=None, max_examples=30)
def test_counts_equal_a_slow_loop(labels, seed, void):
    pairs = split(labels, seed, void=void)
    ignore_index = VOID if void else None
    assert counted(pairs, labels, ignore_index).counts.tolist() == slow_counts(pairs, labels, ignore_index)


@given(label_counts, seeds, st.booleans())
@settings(deadline=None, max_examples=20)
def test_iou_and_dice_are_ratios_of_pixel_sets(labels, seed, void):
    pairs = split(labels, seed, void=void)
    ignore_index = VOID if void else None
    confusion = counted(pairs, labels, ignore_index)
    for label in range(labels):
        truth, guess = slow_sets(pairs, label, ignore_index)
        assert confusion.iou()[label] == pytest.approx(len(truth & guess) / len(truth | guess))
        assert confusion.dice()[label] == pytest.approx(2 * len(truth & guess) / (len(truth) + len(guess)))


@given(label_counts, seeds, st.booleans())
@settings(deadline=None, max_examples=20)
def test_iou_dice_and_accuracy_equal_smp_summed_over_the_split(labels, seed, void):
    pairs = split(labels, seed, void=void)
    ignore_index = VOID if void else None
    predicted, masks = (torch.cat(parts).long() for parts in zip(*pairs, strict=True))
    stats = smp.metrics.get_stats(predicted, masks, "multiclass", ignore_index=ignore_index, num_classes=labels)
    sums = [count.sum(0, keepdim=True) for count in stats]
    confusion = counted(pairs, labels, ignore_index)
    assert confusion.iou() == pytest.approx(smp.metrics.iou_score(*sums, reduction="none")[0].tolist(), rel=1e-6)
    assert confusion.dice() == pytest.approx(smp.metrics.f1_score(*sums, reduction="none")[0].tolist(), rel=1e-6)
    assert confusion.accuracy() == pytest.approx(smp.metrics.recall(*sums, reduction="micro").item(), rel=1e-6)


def test_a_hand_made_binary_example():
    confusion = counted([(image(0, 0, 1, 1, 1), image(0, 1, 1, 1, 0))], labels=2)
    assert confusion.counts.tolist() == [[1, 1], [1, 2]]
    assert confusion.iou() == [1 / 3, 2 / 4]
    assert confusion.dice() == [2 / 4, 4 / 6]
    assert confusion.accuracy() == 3 / 5


# a split, not its batches


@given(label_counts, seeds)
@settings(deadline=None, max_examples=20)
def test_counts_over_batches_equal_counts_over_the_whole(labels, seed):
    pairs = split(labels, seed, batches=4, void=True)
    whole = [tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))]
    assert torch.equal(counted(pairs, labels, VOID).counts, counted(whole, labels, VOID).counts)


def test_iou_is_not_a_mean_over_batches():
    easy, hard = (image(1, 1, 0, 0), image(1, 1, 0, 0)), (image(1, 0, 0, 0), image(0, 1, 0, 0))
    of_batches = [counted([pair], labels=2).iou()[1] for pair in (easy, hard)]
    assert of_batches == [1.0, 0.0]  # their mean is 1/2
    assert counted([easy, hard], labels=2).iou()[1] == 2 / 4
    much_foreground = (image(1, 1, 1, 1, 1, 1), image(1, 1, 1, 1, 1, 1))
    assert counted([much_foreground, hard], labels=2).iou()[1] == 6 / 8


def test_a_confusion_starts_empty():
    assert Confusion(3).counts.tolist() == [[0] * 3] * 3


# absent classes and void pixels


def test_a_class_absent_from_truth_and_prediction_has_no_metric_and_is_left_out_of_means():
    confusion = counted([(image(0, 0, 1, 1), image(0, 1, 1, 1))], labels=3)
    assert confusion.iou() == [1 / 2, 2 / 3, None]
    assert confusion.dice() == [2 / 3, 4 / 5, None]
    summary = confusion.summary(["road", "car", "tree"])
    assert summary["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert summary["dice"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert summary["iou/tree"] is None


def test_a_class_predicted_but_never_true_scores_zero():
    confusion = counted([(image(0, 2), image(0, 0))], labels=3)
    assert confusion.iou() == [1 / 2, None, 0.0]
    assert confusion.dice()[2] == 0.0


def test_a_split_of_void_pixels_only_has_no_metrics():
    confusion = counted([(image(0, 1, 1), image(VOID, VOID, VOID))], labels=2, ignore_index=VOID)
    assert confusion.iou() == confusion.dice() == [None, None]
    assert confusion.accuracy() is None
    assert set(confusion.summary(["background", "foreground"]).values()) == {None}


def test_a_mask_without_foreground_counts_like_any_other():
    confusion = counted([(image(0, 0, 0, 1), image(0, 0, 0, 0)), (image(1, 0), image(1, 1))], labels=2)
    assert confusion.iou() == [3 / 5, 1 / 3]
    empty = counted([(image(0, 0), image(0, 0))], labels=2)
    assert empty.iou() == [1.0, None]
    assert empty.summary(["background", "foreground"])["miou"] == 1.0


def test_an_all_void_mask_adds_nothing():
    pairs = split(3, 0)
    void = (torch.ones(2, 5, 4, dtype=torch.uint8), torch.full((2, 5, 4), VOID, dtype=torch.uint8))
    assert torch.equal(counted([*pairs, void], 3, VOID).counts, counted(pairs, 3, VOID).counts)


@given(label_counts, seeds, st.integers(0, 200))
@settings(deadline=None, max_examples=20)
def test_a_true_label_beyond_the_classes_is_not_counted(labels, seed, beyond):
    pairs = split(labels, seed, void=True)
    stray = [(predicted, mask.masked_fill(mask == VOID, labels + beyond)) for predicted, mask in pairs]
    assert torch.equal(counted(stray, labels).counts, counted(pairs, labels, VOID).counts)


@given(label_counts, seeds, seeds)
@settings(deadline=None, max_examples=20)
def test_predictions_on_void_pixels_are_never_counted(labels, seed, other):
    pairs, others = split(labels, seed, void=True), split(labels, other)
    changed = [
        (torch.where(mask == VOID, wrong, predicted), mask)
        for (predicted, mask), (wrong, _) in zip(pairs, others, strict=True)
    ]
    expected = counted(pairs, labels, VOID)
    assert torch.equal(counted(changed, labels, VOID).counts, expected.counts)
    assert expected.counts.sum() == sum((mask != VOID).sum() for _, mask in pairs)


@pytest.mark.parametrize("ignore_index", [255, 3, -1, -100])
def test_any_value_outside_the_labels_can_be_the_ignore_index(ignore_index):
    confusion = counted([(image(0, 1, 2, 2), image(0, 1, ignore_index, 2))], 3, ignore_index)
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


# laws of the figures


@given(label_counts, seeds)
@settings(deadline=None, max_examples=20)
def test_dice_is_twice_iou_over_one_plus_iou(labels, seed):
    confusion = counted(split(labels, seed), labels)
    for iou, dice in zip(confusion.iou(), confusion.dice(), strict=True):
        assert 0 <= iou <= dice <= 1
        assert dice == pytest.approx(2 * iou / (1 + iou))


def test_a_perfect_prediction_scores_one():
    pairs = [(mask, mask) for _, mask in split(4, 0)]
    confusion = counted(pairs, 4)
    assert confusion.iou() == confusion.dice() == [1.0] * 4
    assert confusion.accuracy() == 1.0


@given(label_counts, seeds)
@settings(deadline=None, max_examples=20)
def test_iou_is_the_same_with_truth_and_prediction_exchanged(labels, seed):
    pairs = split(labels, seed)
    exchanged = [(mask, predicted) for predicted, mask in pairs]
    assert counted(exchanged, labels).iou() == counted(pairs, labels).iou()


def test_binary_miou_is_the_mean_of_background_and_foreground():
    confusion = counted([(image(0, 0, 1, 1, 1), image(0, 1, 1, 1, 0))], labels=2)
    summary = confusion.summary(["background", "foreground"])
    assert summary == {
        "miou": pytest.approx((1 / 3 + 1 / 2) / 2),
        "dice": pytest.approx((1 / 2 + 2 / 3) / 2),
        "iou/background": 1 / 3,
        "iou/foreground": 1 / 2,
        "dice/foreground": 2 / 3,
    }


def test_a_summary_needs_one_name_for_each_label():
    with pytest.raises(ValueError, match="argument"):
        Confusion(3).summary(["background", "foreground"])


# labels


def test_binary_foreground_is_where_the_logit_is_above_zero():
    logits = torch.tensor([-3.0, -1e-3, 0.0, 1e-3, 3.0]).view(1, 1, 1, 5)
    assert predict_labels(logits).tolist() == [[[0, 0, 0, 1, 1]]]


def test_multiclass_label_is_the_most_probable_class():
    logits = torch.tensor([[0.1, 5.0, -1.0], [0.2, -5.0, -2.0], [0.0, 4.9, -0.5]]).view(1, 3, 1, 3)
    assert predict_labels(logits).tolist() == [[[1, 0, 2]]]


@given(st.integers(1, 5), seeds, st.floats(0.5, 20))
@settings(deadline=None, max_examples=20)
def test_labels_do_not_depend_on_temperature(classes, seed, temperature):
    # Whole numbers, so that dividing makes no two different logits equal.
    logits = torch.randint(-9, 10, (2, classes, 4, 3), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(predict_labels(logits / temperature), predict_labels(logits))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_labels_take_one_byte_per_pixel(classes):
    labels = predict_labels(torch.randn(2, classes, 4, 3))
    assert (labels.shape, labels.dtype) == ((2, 4, 3), torch.uint8)


# mean


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
@settings(deadline=None, max_examples=50)
def test_mean_is_over_the_values_that_exist(values):
    total, known = 0.0, 0
    for value in values:
        if value is not None:
            total, known = total + value, known + 1
    assert mean(values) == (pytest.approx(total / known) if known else None)
