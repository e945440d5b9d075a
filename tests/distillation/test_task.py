"""Laws of the task terms for rare classes. References: smp's losses, torch's weighted cross-entropy, formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logits import labels, logits, some_valid, value_and_gradient
from segmentation_models_pytorch.losses import FocalLoss, JaccardLoss, LovaszLoss, TverskyLoss

from kd.distillation.losses import DistillationLoss
from kd.distillation.task import cross_entropy, focal, pooled_tversky, to_the_power

VOID = 255
CLASSES = [1, 2, 5]
NEW = ("focal", "tversky", "jaccard", "lovasz")
#: Each term by smp, with the parameters that `SETTINGS` has.
SMP = {
    "focal": lambda mode, void: FocalLoss(mode, gamma=1.5, alpha=0.3, ignore_index=void),
    "tversky": lambda mode, void: TverskyLoss(mode, alpha=0.3, beta=0.8, gamma=1.3, ignore_index=void),
    "jaccard": lambda mode, void: JaccardLoss(mode, ignore_index=void),
    "lovasz": lambda mode, void: LovaszLoss(mode, ignore_index=void),
}
SETTINGS = {"focal_gamma": 1.5, "focal_alpha": 0.3, "tversky_alpha": 0.3, "tversky_beta": 0.8, "tversky_gamma": 1.3}


def mode(classes):
    return "binary" if classes == 1 else "multiclass"


def weights_of(classes):
    return torch.tensor([0.5, 3.0, 1.0, 2.0, 7.0][: max(classes, 2)])


def term(name, student, mask, ignored=None, **more):
    loss = DistillationLoss({name: 1.0, **SETTINGS, **more}, student.shape[1], ignored)
    return getattr(loss(student, mask, None, 1.0), name)


@pytest.mark.parametrize("ignored", [None, VOID])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", NEW)
def test_a_term_is_smps(name, classes, ignored):
    student, mask = logits(classes, 0), labels(classes, 2)
    if ignored is not None:
        mask = mask.masked_fill(~some_valid(), ignored)
    expected, slope = value_and_gradient(lambda z: SMP[name](mode(classes), ignored)(z, mask), student)
    value, gradient = value_and_gradient(lambda z: term(name, z, mask, ignored), student)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", NEW)
def test_without_valid_pixels_a_term_is_zero_with_a_zero_gradient(name, classes):
    void = torch.full((2, 6, 5), VOID)
    value, gradient = value_and_gradient(
        lambda z: term(name, z, void, VOID, tversky_gamma=0.75, focal_gamma=0.5), logits(classes, 0)
    )
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("garbage", [77.0, -1e4, 1e30])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", NEW)
def test_void_pixels_change_neither_value_nor_gradient(name, classes, garbage):
    student, valid = logits(classes, 0), some_valid()
    mask = labels(classes, 2).masked_fill(~valid, VOID)
    weighted = {"class_weights": weights_of(classes).tolist()} if name == "focal" else {}
    expected, slope = value_and_gradient(lambda z: term(name, z, mask, VOID, **weighted), student)
    void = ~valid[:, None].expand_as(student)
    dirty = torch.where(void, garbage * logits(classes, 3).sign(), student)
    value, gradient = value_and_gradient(lambda z: term(name, z, mask, VOID, **weighted), dirty)
    assert value == expected
    assert torch.equal(gradient, slope)
    assert not gradient[void].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("powers", [0.0, 0.5, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", NEW)
def test_gradients_of_certain_logits_are_finite_in_every_precision(name, classes, powers, dtype):
    """Right or wrong with a probability of exactly 1: where powers below 1 have infinite slopes."""
    mask = torch.tensor([[[0, 1], [1, 0]]])
    hot = torch.stack([mask == label for label in ([1] if classes == 1 else range(classes))], 1)
    for sign in (1, -1):
        student = (torch.where(hot, 1e4, -1e4) * sign).to(dtype)
        more = {"focal_gamma": powers, "tversky_gamma": max(powers, 0.1)}
        value, gradient = value_and_gradient(lambda z: term(name, z, mask, **more), student)  # noqa: B023
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", ["tversky", "jaccard"])
def test_a_pooled_term_is_smps(name, classes):
    """What several processes compute, from sums."""
    student, mask = logits(classes, 0), labels(classes, 2)
    alpha, beta = (0.3, 0.8) if name == "tversky" else (1.0, 1.0)
    smp = TverskyLoss(mode(classes), alpha=0.3, beta=0.8) if name == "tversky" else JaccardLoss(mode(classes))
    expected, slope = value_and_gradient(lambda z: smp(z, mask), student)
    value, gradient = value_and_gradient(lambda z: pooled_tversky(z, mask, None, lambda s: s, alpha, beta), student)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


def test_tversky_with_equal_prices_of_a_half_is_dice():
    student, mask = logits(5, 0), labels(5, 2)
    dice = DistillationLoss({"delta": 1.0}, 5)(student, mask, None, 1.0).dice
    tversky = DistillationLoss({"tversky": 1.0}, 5)(student, mask, None, 1.0).tversky
    assert tversky.item() == pytest.approx(dice.item(), rel=1e-6)


@given(st.floats(1e-5, 1), st.floats(0.1, 3))
@settings(deadline=None, max_examples=30)
def test_a_power_is_the_power_and_flat_at_zero(loss, gamma):
    value, slope = value_and_gradient(lambda z: to_the_power(z, gamma).sum(), torch.tensor([loss, 0.0]))
    assert value.item() == pytest.approx(loss**gamma, rel=1e-4, abs=1e-5)
    assert slope.isfinite().all()
    assert slope[1] == (gamma == 1)


@pytest.mark.parametrize("classes", CLASSES)
def test_focal_with_gamma_zero_is_the_cross_entropy_of_each_class_against_the_others(classes):
    student, mask = logits(classes, 0), labels(classes, 2)
    truth = F.one_hot(mask, max(classes, 2)).movedim(-1, 1)[:, -classes:].float()
    expected = F.binary_cross_entropy_with_logits(student, truth)
    assert focal(student, mask, gamma=0.0).item() == pytest.approx(expected.item(), rel=1e-5)


# class weights


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
def test_weighted_cross_entropy_is_torchs(classes, masked):
    """The binary form is that of two classes with logits 0 and z."""
    student, mask, weights = logits(classes, 0), labels(classes, 2), weights_of(classes)
    valid = some_valid() if masked else None
    mask = mask if valid is None else mask.masked_fill(~valid, VOID)

    def reference(z):
        z = torch.cat([torch.zeros_like(z), z], 1) if classes == 1 else z
        return F.cross_entropy(z, mask, weights, ignore_index=VOID)

    expected, slope = value_and_gradient(reference, student)
    value, gradient = value_and_gradient(lambda z: cross_entropy(z, mask, valid, weights=weights), student)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_weighted_focal_is_smps(classes):
    student, mask, weights = logits(classes, 0), labels(classes, 2), weights_of(classes)
    expected = FocalLoss("multiclass", class_weights=weights.tolist())(student, mask)
    assert focal(student, mask, weights=weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weighted_binary_focal_weighs_each_pixel_by_its_label():
    student, mask = logits(1, 0), labels(1, 2)
    weights, p = [0.5, 3.0], student.double().squeeze(1).sigmoid()
    pixels = [
        (weights[y], (1 - q) ** 2 * -math.log(q))
        for y, q in zip(mask.flatten().tolist(), torch.where(mask == 1, p, 1 - p).flatten().tolist(), strict=True)
    ]
    expected = math.fsum(w * f for w, f in pixels) / math.fsum(w for w, _ in pixels)
    assert focal(student, mask, weights=torch.tensor(weights)).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classes", CLASSES)
def test_equal_class_weights_change_nothing(classes):
    student, mask = logits(classes, 0), labels(classes, 2)
    plain, weighted = (
        DistillationLoss({"gamma": 1.0, "focal": 1.0, "class_weights": weights}, classes)(student, mask, None, 1.0).loss
        for weights in (None, [2.5] * max(classes, 2))
    )
    assert weighted.item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_batch_of_classes_without_weight_is_zero_and_not_nan():
    value, gradient = value_and_gradient(
        lambda z: cross_entropy(z, torch.zeros(2, 6, 5), weights=torch.tensor([0.0, 1.0])), logits(1, 0)
    )
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(
    ("weights", "classes", "says"),
    [
        ([1, 2], 3, "loss.class_weights has 2 weights and should have 3, one per class"),
        ([1, 2, 3], 1, r"3 weights and should have two \(background, foreground\)"),
        ([0, 0], 1, "class_weights are all 0"),
        ([1, -1], 1, "a weight for each class, 0 or more"),
        ("auto", 1, "class_weights=auto are taken from the training masks"),
        ("median", 1, "null, auto, or a list"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, classes, says):
    with pytest.raises(ValueError, match=says):
        DistillationLoss({"gamma": 1.0, "class_weights": weights}, classes)


def test_class_weights_without_a_term_that_counts_pixels_are_refused():
    with pytest.raises(ValueError, match="class_weights weigh the pixels of cross-entropy and focal"):
        DistillationLoss({"delta": 1.0, "class_weights": [1, 2]}, 1)


def test_lovasz_of_several_processes_needs_the_whole_batch():
    with pytest.raises(ValueError, match="lovasz sorts the pixels of the whole batch"):
        DistillationLoss({"lovasz": 1.0}, 1, None, lambda sums: sums)
