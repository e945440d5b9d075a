"""Laws of the losses. References: a slow float64 loop over pixels, torch's own losses, smp's Dice.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary.
"""

import itertools
import math

import pytest
import together
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logits import labels, log_probabilities, logits, some_valid, value_and_gradient
from segmentation_models_pytorch.losses import DiceLoss
from torch._dynamo.testing import CompileCounterWithBackend

from kd.distillation.losses import DistillationLoss
from kd.distillation.soft_targets import binary_kl, logits_mse, multiclass_kl, standardised
from kd.distillation.task import cross_entropy, pooled_dice
from kd.settings import TASK_TERMS, TEACHING_TERMS
from kd.settings.loss import AT_LABELS

VOID = 255
ALL_TERMS = {"alpha": 0.3, "beta": 0.5, "gamma": 0.5, "delta": 1.0}
IMBALANCE = {"focal": 2.0, "tversky": 0.7, "jaccard": 0.4, "lovasz": 0.3}
PRICES = {"tversky_alpha": 0.3, "tversky_beta": 0.8, "tversky_gamma": 0.75, "focal_gamma": 1.5, "focal_alpha": 0.3}
ON_LOGITS = {term: weight for term, weight in TEACHING_TERMS.items() if term != "features"}
#: Every weight above 0 that a number of classes allows.
EVERY_TERM = {
    1: {**ALL_TERMS, "cwd": 3.0, "dist_intra": 1.0, **IMBALANCE},
    3: {**ALL_TERMS, "cwd": 3.0, "dist_intra": 1.0, "dist_inter": 1.0, "tckd": 1.0, "nckd": 2.0, **IMBALANCE},
}
CLASS_WEIGHTS = {1: (0.5, 3.0), 3: (0.5, 3.0, 1.0)}
TEMPERATURES = [0.5, 1.0, 4.0, 20.0]
CLASSES = [1, 2, 5]


def kl_of(classes):
    """The KL function for a number of classes."""
    return binary_kl if classes == 1 else multiclass_kl


def slow_kl(student_BCHW, teacher_BCHW, temperature, valid_BHW=None):
    """T^2 sum_c p_c (log p_c - log q_c), averaged over the valid pixels, one pixel at a time; (0, z) where C = 1."""
    batch, classes, height, width = student_BCHW.shape
    pixels = []
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        if valid_BHW is not None and not valid_BHW[b, y, x]:
            continue
        student, teacher = student_BCHW[b, :, y, x].tolist(), teacher_BCHW[b, :, y, x].tolist()
        if classes == 1:
            student, teacher = [0.0, *student], [0.0, *teacher]
        log_q, log_p = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
        pixels.append(math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return temperature**2 * math.fsum(pixels) / len(pixels)


# KL: references


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", CLASSES)
def test_kl_equals_float64_closed_form(classes, temperature, masked):
    student, teacher = logits(classes, 0), logits(classes, 1)
    valid = some_valid() if masked else None
    expected = slow_kl(student, teacher, temperature, valid)
    assert kl_of(classes)(student, teacher, temperature, valid).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_multiclass_temperature_one_equals_plain_kl(classes):
    student, teacher = logits(classes, 0), logits(classes, 1)
    plain = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    assert multiclass_kl(student, teacher, 1.0).item() == pytest.approx(plain.sum(1).mean().item(), rel=1e-5)


def test_binary_temperature_one_equals_plain_kl():
    student, teacher = logits(1, 0), logits(1, 1)
    log_q = torch.cat([F.logsigmoid(-student), F.logsigmoid(student)], dim=1)
    log_p = torch.cat([F.logsigmoid(-teacher), F.logsigmoid(teacher)], dim=1)
    plain = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).mean()
    assert binary_kl(student, teacher, 1.0).item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_binary_equals_two_classes_with_logits_zero_and_z(temperature, masked):
    student, teacher = logits(1, 0), logits(1, 1)
    valid = some_valid() if masked else None
    two = [torch.cat([torch.zeros_like(z), z], dim=1) for z in (student, teacher)]
    expected = multiclass_kl(*two, temperature, valid).item()
    assert binary_kl(student, teacher, temperature, valid).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", CLASSES)
def test_kl_gradient_is_temperature_times_difference_of_probabilities(classes, temperature):
    student, teacher = logits(classes, 0), logits(classes, 1)
    _, gradient = value_and_gradient(lambda leaf: kl_of(classes)(leaf, teacher, temperature), student)
    soften = torch.sigmoid if classes == 1 else lambda z: torch.softmax(z, dim=1)
    pixels = student.numel() / classes
    difference = soften(student.double() / temperature) - soften(teacher.double() / temperature)
    torch.testing.assert_close(gradient.double(), temperature * difference / pixels, rtol=1e-4, atol=1e-7)


# KL: temperature


@pytest.mark.parametrize("classes", CLASSES)
def test_kl_gradient_of_small_logits_has_the_same_size_at_every_temperature(classes):
    student, teacher = logits(classes, 0, scale=0.1), logits(classes, 1, scale=0.1)
    norms = [
        value_and_gradient(lambda leaf, T=T: kl_of(classes)(leaf, teacher, T), student)[1].norm().item()
        for T in (1.0, 3.0, 10.0, 30.0, 100.0)
    ]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=0.01)


def test_binary_kl_tends_to_an_eighth_of_the_squared_difference():
    student, teacher = logits(1, 0), logits(1, 1)
    limit = (student - teacher).double().square().mean().item() / 8
    errors = [abs(binary_kl(student, teacher, T).item() / limit - 1) for T in (2.0, 8.0, 32.0)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


@pytest.mark.parametrize("classes", [2, 5])
def test_multiclass_kl_tends_to_half_the_mean_square_of_the_centred_difference(classes):
    student, teacher = logits(classes, 0), logits(classes, 1)
    centred = [(z - z.mean(dim=1, keepdim=True)).double() for z in (student, teacher)]
    limit = (centred[0] - centred[1]).square().mean().item() / 2
    errors = [abs(multiclass_kl(student, teacher, T).item() / limit - 1) for T in (2.0, 8.0, 32.0)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


# KL: sign and zero


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=5),
    st.floats(0.5, 20),
)
@settings(deadline=None, max_examples=150)
def test_kl_is_never_negative(pixel, temperature):
    student, teacher = (torch.tensor(z).view(1, -1, 1, 1) for z in zip(*pixel, strict=True))
    rounding = temperature**2 * 1e-6 * (1 + max(abs(z) for pair in pixel for z in pair) / temperature)
    assert kl_of(len(pixel))(student, teacher, temperature).item() >= -rounding


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", CLASSES)
def test_kl_and_its_gradient_are_zero_when_student_equals_teacher(classes, temperature):
    teacher = logits(classes, 0)
    value, gradient = value_and_gradient(lambda leaf: kl_of(classes)(leaf, teacher, temperature), teacher)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", CLASSES)
def test_kl_is_positive_when_student_differs(classes):
    assert kl_of(classes)(logits(classes, 0), logits(classes, 1), 4.0).item() > 0.1


@pytest.mark.parametrize("classes", [2, 5])
def test_multiclass_kl_ignores_a_constant_added_to_all_logits_of_a_pixel(classes):
    student, teacher = logits(classes, 0), logits(classes, 1)
    shifted = multiclass_kl(student + logits(1, 2), teacher + logits(1, 3), 4.0)
    assert shifted.item() == pytest.approx(multiclass_kl(student, teacher, 4.0).item(), rel=1e-4)


# KL: for any logits

pixels = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=5)


def one_pixel(pairs):
    """Student and teacher, 1 x C x 1 x 1 each, from a list of (student, teacher) logits."""
    return (torch.tensor(z).view(1, -1, 1, 1) for z in zip(*pairs, strict=True))


def probabilities(z_1C11, temperature):
    """C x 1 x 1 softmax in float64; of (0, z) where C = 1."""
    z = z_1C11.double().squeeze(0)
    return torch.softmax((torch.cat([torch.zeros_like(z), z]) if len(z) == 1 else z) / temperature, dim=0)


@given(pixels, st.floats(0.5, 20))
@settings(deadline=None, max_examples=150)
def test_kl_is_zero_only_if_student_and_teacher_agree(pixel, temperature):
    # Pinsker: KL(p || q) >= 2 TV(p, q)^2 nats; the T^2 in front is the loss's own.
    student, teacher = one_pixel(pixel)
    distance = (probabilities(student, temperature) - probabilities(teacher, temperature)).abs().sum().item() / 2
    rounding = temperature**2 * 1e-6 * (1 + 20 / temperature)
    assert kl_of(len(pixel))(student, teacher, temperature).item() >= 2 * (temperature * distance) ** 2 - rounding
    assert abs(kl_of(len(pixel))(student, student, temperature).item()) <= rounding


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_kl_at_a_high_temperature_is_half_the_variance_of_the_difference(pixel):
    # KL_T T^2 is the mean of Var_p(d) over a path of p's, weighed by 1 - u; each p is within e^(2/T) of uniform, which
    # moves a variance of a d of range R by less than 3 R^2 (e^(2/T) - 1).
    temperature = 100.0
    student, teacher = one_pixel(pixel)
    difference = (student - teacher).double().flatten()
    difference = torch.cat([torch.zeros(1), difference]) if len(pixel) == 1 else difference
    limit, spread = difference.var(correction=0).item() / 2, (difference.max() - difference.min()).item()
    room = 1.5 * spread**2 * math.expm1(2 / temperature) + temperature**2 * 4e-7
    assert kl_of(len(pixel))(student, teacher, temperature).item() == pytest.approx(limit, abs=room)


@given(pixels.filter(lambda pixel: len(pixel) > 1), st.floats(-50, 50), st.floats(-50, 50), st.floats(0.5, 20))
@settings(deadline=None, max_examples=100)
def test_a_constant_added_to_all_logits_of_a_pixel_changes_nothing(pixel, student_shift, teacher_shift, temperature):
    student, teacher = one_pixel(pixel)
    plain = multiclass_kl(student, teacher, temperature).item()
    shifted = multiclass_kl(student + student_shift, teacher + teacher_shift, temperature).item()
    assert shifted == pytest.approx(plain, rel=1e-4, abs=temperature**2 * 1e-5 * (1 + 1 / temperature))


# KL: range and precision


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_kl_of_extreme_logits_is_finite_and_right_in_every_precision(classes, dtype, temperature):
    # Every combination of -1e4, 0 and 1e4 over the channels of student and teacher, one a pixel.
    columns = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], repeat=2 * classes)), dtype=dtype)
    student, teacher = columns.T.reshape(2, 1, classes, 1, -1)
    value, gradient = value_and_gradient(lambda leaf: kl_of(classes)(leaf, teacher, temperature), student)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(slow_kl(student, teacher, temperature), rel=1e-4)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", CLASSES)
def test_kl_of_half_precision_logits_is_computed_in_float32(classes, dtype):
    # At T = 20 the difference that is left is below what half precision can tell apart.
    student = logits(classes, 0).to(dtype)
    teacher = (student + logits(classes, 1, scale=0.1)).to(dtype)
    expected = slow_kl(student, teacher, 20.0)
    assert kl_of(classes)(student, teacher, 20.0).item() == pytest.approx(expected, rel=0.02)


# every term: which pixels count

TERMS = {
    "kl": lambda student, teacher, mask, valid: kl_of(student.shape[1])(student, teacher, 4.0, valid),
    "mse": lambda student, teacher, mask, valid: logits_mse(student, teacher, valid),
    "ce": lambda student, teacher, mask, valid: cross_entropy(student, mask, valid),
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("term", TERMS)
def test_without_a_valid_mask_all_pixels_are_valid(term, classes):
    student, teacher, mask = logits(classes, 0), logits(classes, 1), labels(classes, 2)
    everywhere = torch.ones_like(mask, dtype=torch.bool)
    expected = TERMS[term](student, teacher, mask, everywhere).item()
    assert TERMS[term](student, teacher, mask, None).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("term", TERMS)
def test_a_mean_over_valid_pixels_is_the_loss_of_the_valid_pixels_alone(term, classes):
    student, teacher, mask, valid = logits(classes, 0), logits(classes, 1), labels(classes, 2), some_valid()
    alone = [z.movedim(1, -1)[valid].T[None, :, None] for z in (student, teacher)]
    expected = TERMS[term](*alone, mask[valid][None, None], None).item()
    assert TERMS[term](student, teacher, mask, valid).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("garbage", [77.0, -1e4, 1e30])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("term", TERMS)
def test_ignored_pixels_change_neither_value_nor_gradient(term, classes, garbage):
    student, teacher, mask, valid = logits(classes, 0), logits(classes, 1), labels(classes, 2), some_valid()
    expected, expected_gradient = value_and_gradient(lambda z: TERMS[term](z, teacher, mask, valid), student)
    ignored = ~valid[:, None].expand_as(student)
    signs = logits(classes, 3).sign()
    dirty_student = torch.where(ignored, garbage * signs, student)
    dirty_teacher = torch.where(ignored, -garbage * signs, teacher)
    dirty_mask = mask.masked_fill(~valid, VOID)
    value, gradient = value_and_gradient(lambda z: TERMS[term](z, dirty_teacher, dirty_mask, valid), dirty_student)
    assert value == expected
    assert torch.equal(gradient, expected_gradient)
    assert not gradient[ignored].any()


@pytest.mark.parametrize("classes", CLASSES)
def test_no_term_depends_on_the_image_size(classes):
    loss = DistillationLoss(ALL_TERMS, classes, VOID)
    student, teacher = logits(classes, 0), logits(classes, 1)
    mask = labels(classes, 2).masked_fill(~some_valid(), VOID)
    small = loss(student, mask, teacher, 4.0).scalars()
    tiled = loss(student.repeat(1, 1, 3, 2), mask.repeat(1, 3, 2), teacher.repeat(1, 1, 3, 2), 4.0).scalars()
    assert set(small) == {"loss", "kl", "mse", "ce", "dice"}
    for name, value in small.items():
        assert tiled[name].item() == pytest.approx(value.item(), rel=1e-5), name


@given(
    classes=st.sampled_from(CLASSES), seed=st.integers(0, 10_000), size=st.tuples(*[st.integers(1, 5)] * 3),
    tiles=st.tuples(*[st.integers(1, 3)] * 3), temperature=st.floats(0.5, 20), void=st.floats(0, 1),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_a_tiled_image_has_the_losses_of_the_image(classes, seed, size, tiles, temperature, void):
    student, teacher = logits(classes, seed, size), logits(classes, seed + 1, size)
    mask = torch.randint(0, max(classes, 2), size, generator=torch.Generator().manual_seed(seed))
    mask = mask.masked_fill(torch.rand(size, generator=torch.Generator().manual_seed(seed)) < void, VOID)
    batch, down, across = tiles
    many = [z.repeat(batch, 1, down, across) for z in (student, teacher)]
    loss = DistillationLoss(ALL_TERMS, classes, VOID)
    one = loss(student, mask, teacher, temperature).scalars()
    tiled = loss(many[0], mask.repeat(tiles), many[1], temperature).scalars()
    for name, value in one.items():
        assert tiled[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("term", TERMS)
def test_a_term_without_valid_pixels_is_zero_with_zero_gradient(term, classes):
    student, teacher = logits(classes, 0), logits(classes, 1)
    mask = torch.full((2, 6, 5), VOID)
    value, gradient = value_and_gradient(lambda z: TERMS[term](z, teacher, mask, mask != VOID), student)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


# cross-entropy and MSE: references


@pytest.mark.parametrize("classes", [2, 5])
def test_multiclass_cross_entropy_equals_torch(classes):
    student, mask = logits(classes, 0), labels(classes, 2)
    valid = some_valid()
    assert cross_entropy(student, mask).item() == pytest.approx(F.cross_entropy(student, mask).item(), rel=1e-6)
    void = mask.masked_fill(~valid, VOID)
    expected = F.cross_entropy(student, void, ignore_index=VOID).item()
    assert cross_entropy(student, void, valid).item() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_equals_torch():
    student, mask, valid = logits(1, 0), labels(1, 2), some_valid()
    plain, target = student.squeeze(1), mask.float()
    expected = F.binary_cross_entropy_with_logits(plain, target).item()
    assert cross_entropy(student, mask).item() == pytest.approx(expected, rel=1e-6)
    expected = F.binary_cross_entropy_with_logits(plain[valid], target[valid]).item()
    assert cross_entropy(student, mask.masked_fill(~valid, VOID), valid).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy_accepts_uint8_masks(classes):
    student, mask, valid = logits(classes, 0), labels(classes, 2), some_valid()
    stored = mask.masked_fill(~valid, VOID).to(torch.uint8)
    assert cross_entropy(student, stored, valid) == cross_entropy(student, mask, valid)


@pytest.mark.parametrize("classes", CLASSES)
def test_logits_mse_equals_torch(classes):
    student, teacher = logits(classes, 0), logits(classes, 1)
    assert logits_mse(student, teacher).item() == pytest.approx(F.mse_loss(student, teacher).item(), rel=1e-6)


def test_logits_mse_of_a_worked_example():
    student = torch.tensor([1.0, 2.0, 5.0]).view(1, 1, 1, 3)
    teacher = torch.tensor([1.0, 4.0, -5.0]).view(1, 1, 1, 3)
    assert logits_mse(student, teacher, torch.tensor([[[True, True, False]]])).item() == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 3])
def test_every_term_of_extreme_half_precision_logits_is_finite(classes, dtype):
    student = torch.full((1, classes, 2, 2), 1e4, dtype=dtype)
    mask = torch.tensor([[[0, 1], [1, 0]]])
    loss = DistillationLoss(ALL_TERMS, classes)
    terms = []

    def total(leaf):
        terms.append(loss(leaf, mask, -student, 4.0))
        return terms[0].loss

    _, gradient = value_and_gradient(total, student * torch.tensor([1, -1], dtype=dtype))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms[0].scalars().values())
    assert gradient.isfinite().all()


# Dice


@pytest.mark.parametrize("classes", CLASSES)
def test_dice_equals_smp_on_the_valid_pixels_alone(classes):
    student, mask, valid = logits(classes, 0), labels(classes, 2), some_valid()
    loss = DistillationLoss({"alpha": 0, "beta": 0, "gamma": 0, "delta": 1}, classes, VOID)
    alone = student.movedim(1, -1)[valid].T[None, :, None]
    smp = DiceLoss("binary" if classes == 1 else "multiclass")(alone, mask[valid][None, None])
    dice = loss(student, mask.masked_fill(~valid, VOID), None, 1.0).dice
    assert dice.item() == pytest.approx(smp.item(), rel=1e-5)


def test_binary_dice_is_one_minus_twice_the_overlap_over_the_sum():
    student, mask = logits(1, 0), labels(1, 2)
    p, y = student.squeeze(1).double().sigmoid(), mask.double()
    expected = 1 - 2 * (p * y).sum() / (p.sum() + y.sum())
    loss = DistillationLoss({"alpha": 0, "beta": 0, "gamma": 0, "delta": 1}, 1)
    assert loss(student, mask, None, 1.0).dice.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("garbage", [77.0, -1e4, 1e30])
@pytest.mark.parametrize("classes", CLASSES)
def test_dice_ignores_void_pixels_exactly(classes, garbage):
    student, valid = logits(classes, 0), some_valid()
    mask = labels(classes, 2).masked_fill(~valid, VOID)
    loss = DistillationLoss({"alpha": 0, "beta": 0, "gamma": 0, "delta": 1}, classes, VOID)
    expected, expected_gradient = value_and_gradient(lambda z: loss(z, mask, None, 1.0).dice, student)
    void = ~valid[:, None].expand_as(student)
    dirty = torch.where(void, garbage * logits(classes, 3).sign(), student)
    value, gradient = value_and_gradient(lambda z: loss(z, mask, None, 1.0).dice, dirty)
    assert value == expected
    assert torch.equal(gradient, expected_gradient)
    assert not gradient[void].any()


def test_binary_dice_of_a_batch_without_foreground_is_zero_with_zero_gradient():
    loss = DistillationLoss({"alpha": 0, "beta": 0, "gamma": 0, "delta": 1}, 1)
    empty = torch.zeros(2, 6, 5, dtype=torch.uint8)
    value, gradient = value_and_gradient(lambda z: loss(z, empty, None, 1.0).dice, logits(1, 0))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("absent", [0, 2, 4])
def test_a_class_without_true_pixels_adds_nothing_to_dice(absent):
    student, mask = logits(5, 0), labels(5, 2)
    mask = mask.masked_fill(mask == absent, (absent + 1) % 5)
    loss = DistillationLoss({"alpha": 0, "beta": 0, "gamma": 0, "delta": 1}, 5)
    p, y = torch.softmax(student.double(), dim=1), F.one_hot(mask, 5).movedim(-1, 1).double()
    per_class = 1 - 2 * (p * y).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + y.sum((0, 2, 3)))
    expected = sum(value for label, value in enumerate(per_class.tolist()) if label != absent) / 5
    assert loss(student, mask, None, 1.0).dice.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", CLASSES)
def test_false_foreground_in_a_batch_without_any_is_pushed_down(classes):
    student, empty = logits(classes, 0), torch.zeros(2, 6, 5, dtype=torch.uint8)
    loss = DistillationLoss(ALL_TERMS, classes)
    value, gradient = value_and_gradient(lambda z: loss(z, empty, z.detach(), 4.0).loss, student)
    foreground = gradient if classes == 1 else gradient[:, 1:].sum(dim=1)
    assert value.isfinite()
    assert (foreground > 0).all()


# the weighted sum


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=4, max_size=4).filter(any), st.sampled_from(CLASSES))
@settings(deadline=None, max_examples=60)
def test_total_is_the_weighted_sum_of_the_terms(weights, classes):
    student, teacher, mask = logits(classes, 0), logits(classes, 1), labels(classes, 2)
    mask = mask.masked_fill(~some_valid(), VOID)
    loss = DistillationLoss(dict(zip(ALL_TERMS, weights, strict=True)), classes, VOID)
    terms = loss(student, mask, teacher, 4.0)
    expected = sum(
        weight * term.item()
        for weight, term in zip(weights, (terms.kl, terms.mse, terms.ce, terms.dice), strict=True)
        if weight
    )
    assert terms.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", CLASSES)
def test_each_term_is_the_function_of_its_name(classes):
    student, teacher, valid = logits(classes, 0), logits(classes, 1), some_valid()
    mask = labels(classes, 2).masked_fill(~valid, VOID)
    terms = DistillationLoss(ALL_TERMS, classes, VOID)(student, mask, teacher, 4.0)
    assert terms.kl == kl_of(classes)(student, teacher, 4.0, valid)
    assert terms.mse == logits_mse(student, teacher, valid)
    assert terms.ce == cross_entropy(student, mask, valid)


@pytest.mark.parametrize(("weight", "term"), [("alpha", "kl"), ("beta", "mse"), ("gamma", "ce"), ("delta", "dice")])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_term_of_weight_zero_is_not_computed(classes, weight, term):
    loss = DistillationLoss({**ALL_TERMS, weight: 0.0}, classes)
    terms = loss(logits(classes, 0), labels(classes, 2), logits(classes, 1), 4.0)
    assert getattr(terms, term) is None
    assert set(terms.scalars()) == {"loss", "kl", "mse", "ce", "dice"} - {term}


@pytest.mark.parametrize("classes", [1, 3])
def test_the_total_of_every_term_is_their_weighted_sum(classes):
    weights, student, mask = EVERY_TERM[classes], logits(classes, 0), labels(classes, 2)
    weights = {**weights, **PRICES, "class_weights": CLASS_WEIGHTS[classes]}
    found = DistillationLoss(weights, classes)(student, mask, logits(classes, 1), 4.0).scalars()
    names = {**TEACHING_TERMS, **TASK_TERMS}
    assert set(found) == {"loss"} | {term for term, weight in names.items() if weight in weights}
    expected = sum(weights[names[term]] * value.item() for term, value in found.items() if term != "loss")
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", ON_LOGITS.values())
def test_a_term_of_the_teacher_alone_needs_it_and_counts_void_pixels_on_request(weight):
    student, mask = logits(3, 0), labels(3, 2).masked_fill(~some_valid(), VOID)
    teacher = logits(3, 1)
    losses = [DistillationLoss({weight: 1.0, "on_void": on_void}, 3, VOID) for on_void in (False, True)]
    everywhere = DistillationLoss({weight: 1.0}, 3)
    assert all(loss.needs_teacher for loss in losses)
    without, on_void = (loss(student, mask, teacher, 4.0).loss for loss in losses)
    if weight in ("tckd", "nckd"):  # a void pixel has no label
        assert on_void == without
    else:
        assert on_void != without
        assert on_void.item() == pytest.approx(everywhere(student, mask, teacher, 4.0).loss.item(), rel=1e-5)


@pytest.mark.parametrize("setting", ["standardise", "dist_inter", "tckd", "nckd"])
@pytest.mark.parametrize("classes", [1, 2])
def test_a_term_that_two_classes_make_meaningless_is_refused(setting, classes):
    with pytest.raises(ValueError, match=rf"loss\.{setting}=.* needs three classes or more: .*; set loss\.{setting}="):
        DistillationLoss({"alpha": 1.0, setting: True if setting == "standardise" else 1.0}, classes)


def test_a_standardised_kl_is_the_kl_of_standardised_logits():
    student, teacher, mask = logits(5, 0), logits(5, 1), labels(5, 2)
    found = DistillationLoss({"alpha": 1.0, "standardise": True}, 5)(student, mask, teacher, 2.0).kl
    assert found == multiclass_kl(standardised(student), standardised(teacher), 2.0)


@pytest.mark.parametrize("classes", CLASSES)
def test_without_alpha_and_beta_no_teacher_is_needed(classes):
    loss = DistillationLoss({**ALL_TERMS, "alpha": 0.0, "beta": 0.0}, classes)
    student, mask = logits(classes, 0), labels(classes, 2)
    assert not loss.needs_teacher
    assert loss(student, mask, None, 4.0).loss == loss(student, mask, logits(classes, 1), 4.0).loss


@pytest.mark.parametrize("weight", ["alpha", "beta"])
def test_alpha_or_beta_alone_needs_a_teacher(weight):
    assert DistillationLoss({**dict.fromkeys(ALL_TERMS, 0.0), weight: 0.1}, classes=1).needs_teacher


@pytest.mark.parametrize("classes", CLASSES)
def test_temperature_appears_in_the_distillation_term_only(classes):
    loss = DistillationLoss(ALL_TERMS, classes)
    student, teacher, mask = logits(classes, 0), logits(classes, 1), labels(classes, 2)
    cold, hot = loss(student, mask, teacher, 1.0), loss(student, mask, teacher, 10.0)
    assert (cold.mse, cold.ce, cold.dice) == (hot.mse, hot.ce, hot.dice)
    assert cold.kl != hot.kl


@pytest.mark.parametrize("classes", CLASSES)
def test_an_all_void_batch_gives_zero_terms_and_zero_gradient(classes):
    loss = DistillationLoss(ALL_TERMS, classes, VOID)
    mask, teacher = torch.full((2, 6, 5), VOID), logits(classes, 1)
    terms = loss(logits(classes, 0), mask, teacher, 4.0).scalars()
    assert {name: value.item() for name, value in terms.items()} == {"loss": 0, "kl": 0, "mse": 0, "ce": 0, "dice": 0}
    _, gradient = value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, logits(classes, 0))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("classes", CLASSES)
def test_void_pixels_change_neither_total_nor_gradient(classes):
    loss, valid = DistillationLoss(ALL_TERMS, classes, VOID), some_valid()
    student, teacher = logits(classes, 0), logits(classes, 1)
    mask = labels(classes, 2).masked_fill(~valid, VOID)
    expected, expected_gradient = value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)
    void = ~valid[:, None].expand_as(student)
    dirty_teacher = torch.where(void, 1e4, teacher)
    value, gradient = value_and_gradient(
        lambda z: loss(z, mask, dirty_teacher, 4.0).loss, torch.where(void, -1e4, student)
    )
    assert value == expected
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("ignore_index", [255, 11, -1, -100])
@pytest.mark.parametrize("classes", [1, 5])
def test_any_value_outside_the_classes_can_be_ignore_index(classes, ignore_index):
    student, teacher, valid = logits(classes, 0), logits(classes, 1), some_valid()
    marked = labels(classes, 2).masked_fill(~valid, ignore_index)
    usual = labels(classes, 2).masked_fill(~valid, VOID)
    value = DistillationLoss(ALL_TERMS, classes, ignore_index)(student, marked, teacher, 4.0).loss
    assert value == DistillationLoss(ALL_TERMS, classes, VOID)(student, usual, teacher, 4.0).loss


def test_scalars_have_no_gradient():
    student = logits(3, 0).requires_grad_()
    terms = DistillationLoss(ALL_TERMS, 3)(student, labels(3, 2), logits(3, 1), 4.0)
    assert terms.loss.requires_grad
    assert not any(value.requires_grad for value in terms.scalars().values())


# pictures without masks


@pytest.mark.parametrize("ignored", [None, VOID])
@pytest.mark.parametrize("classes", CLASSES)
def test_pictures_without_masks_count_with_all_their_pixels_in_the_teachers_terms_and_in_no_other(classes, ignored):
    """3 samples with masks, 2 without. The teacher's mean is over pixels: those of the valid ones and of the others."""
    size, weights = (5, 6, 5), ALL_TERMS
    student, teacher, mask = logits(classes, 0, size), logits(classes, 1, size), labels(classes, 2, (3, 6, 5))
    valid = torch.ones(5, 6, 5, dtype=torch.bool)
    if ignored is not None:
        valid[:3] = some_valid(size=(3, 6, 5))
        mask = mask.masked_fill(~valid[:3], ignored)
    loss = DistillationLoss(weights, classes, ignored)
    found, gradient = (
        loss(student, mask, teacher, 4.0),
        value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)[1],
    )
    alone = loss(student[:3], mask, teacher[:3], 4.0)
    torch.testing.assert_close(found.kl.item(), slow_kl(student, teacher, 4.0, valid), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mse, (student - teacher).square().mean(1)[valid].mean())
    assert (found.ce, found.dice) == (alone.ce, alone.dice)
    task = DistillationLoss({**weights, "alpha": 0, "beta": 0}, classes, ignored)
    kl = binary_kl if classes == 1 else multiclass_kl
    _, expected = value_and_gradient(
        lambda z: (
            0.3 * kl(z, teacher, 4.0, valid) + 0.5 * logits_mse(z, teacher, valid) + task(z[:3], mask, None, 4.0).loss
        ),
        student,
    )
    torch.testing.assert_close(gradient, expected)
    assert gradient[3:].abs().min() > 0


@pytest.mark.parametrize(("term", "weight"), ON_LOGITS.items())
def test_a_term_that_needs_no_label_learns_from_pictures_without_masks(term, weight):
    loss = DistillationLoss({weight: 1.0}, 3, VOID)
    student, teacher, mask = logits(3, 0, (5, 6, 5)), logits(3, 1, (5, 6, 5)), labels(3, 2, (3, 6, 5))
    _, gradient = value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)
    assert gradient[:3].any()
    assert gradient[3:].any() == (term not in AT_LABELS)
    assert loss.settings.teaches_without_masks == (term not in AT_LABELS)


def test_more_masks_than_samples_or_none_at_all_are_refused():
    for count in (0, 3):
        with pytest.raises(ValueError, match="the mask must have the shape"):
            DistillationLoss(ALL_TERMS, 1)(logits(1, 0), labels(1, 2, (3, 6, 5))[:count], logits(1, 1), 4.0)


# a batch that several processes share


SHARED = [(classes, ignored) for classes in (1, 3) for ignored in (None, VOID)]


def whole_batch(classes, ignored):
    """5 samples; with void, the first is all void and the last has none; class 2 is only in the last."""
    size = (5, 6, 5)
    student, teacher, mask = logits(classes, 0, size), logits(classes, 1, size), labels(min(classes, 2), 2, size)
    mask[4, :3] = max(classes, 2) - 1
    if ignored is not None:
        mask = mask.masked_fill(~some_valid(size=size) & (torch.arange(5) < 4)[:, None, None], ignored)
        mask[0] = ignored
    return student, teacher, mask


def every_term(classes):
    return {**EVERY_TERM[classes], **PRICES, "class_weights": CLASS_WEIGHTS[classes]}


def in_processes(world):
    """The terms of each shared batch, and the gradient of this process's samples."""
    found = []
    for classes, ignored in SHARED:
        student, teacher, mask = (world.share(each) for each in whole_batch(classes, ignored))
        loss = DistillationLoss(every_term(classes), classes, ignored, world.total, world.whole)
        _, gradient = value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)  # noqa: B023
        found.append((loss(student, mask, teacher, 4.0).scalars(), gradient))
    return found


@pytest.fixture(scope="module")
def shared():
    return together.run(in_processes, size=3)


@pytest.mark.parametrize("case", range(len(SHARED)), ids=str)
def test_every_process_computes_the_loss_of_the_whole_batch(case, shared):
    student, teacher, mask = whole_batch(*SHARED[case])
    expected = DistillationLoss(every_term(SHARED[case][0]), *SHARED[case])(student, mask, teacher, 4.0).scalars()
    for process in shared:
        torch.testing.assert_close(process[case][0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", range(len(SHARED)), ids=str)
def test_the_mean_of_gradients_over_processes_is_that_of_the_whole_batch(case, shared):
    """Each gradient is too large by the number of processes, over which DistributedDataParallel averages."""
    student, teacher, mask = whole_batch(*SHARED[case])
    loss = DistillationLoss(every_term(SHARED[case][0]), *SHARED[case])
    _, expected = value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)
    found = torch.cat([process[case][1] for process in shared]) / len(shared)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("ignored", [None, VOID])
@pytest.mark.parametrize("classes", CLASSES)
def test_pooled_dice_equals_smps(classes, ignored):
    student, mask = logits(classes, 0), labels(classes, 2)
    valid = None
    if ignored is not None:
        valid = some_valid()
        mask = mask.masked_fill(~valid, ignored)
    smp = DiceLoss("binary" if classes == 1 else "multiclass", ignore_index=ignored)
    expected, expected_gradient = value_and_gradient(lambda z: smp(z, mask), student)
    value, gradient = value_and_gradient(lambda z: pooled_dice(z, mask, valid, lambda sums: sums), student)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_pooled_dice_ignores_a_class_that_no_process_has():
    student, mask = logits(5, 0), labels(2, 2)
    smp = DiceLoss("multiclass")(student, mask)
    assert pooled_dice(student, mask, None, lambda sums: sums).item() == pytest.approx(smp.item(), rel=1e-5)


# padding


EVERYTHING = {
    "alpha": 0.3, "beta": 0.5, "cwd": 1.0, "dist_inter": 1.0, "dist_intra": 1.0, "tckd": 1.0, "nckd": 1.0, "gamma": 0.5,
    "delta": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("on_void", [False, True])
@pytest.mark.parametrize("labelled", [1, 2, 3])
def test_padding_counts_in_no_term_whatever_its_amount_and_what_is_there(on_void, labelled):
    """Nor with on_void, nor in a picture without a mask: the terms are those of the pictures without their padding."""
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    mask = torch.randint(0, 4, (labelled, 8, 8))
    mask[:, 0, :3] = 9
    loss = DistillationLoss({**EVERYTHING, "on_void": on_void}, 4, ignore_index=9)
    plain = loss(student, mask, teacher, 2.0)
    for pad in (1, 5):
        grown = [F.pad(tensor, (pad, 0, 0, pad), value=value) for tensor, value in ((student, 50.0), (teacher, -50.0))]
        content = F.pad(torch.ones(3, 8, 8, dtype=torch.bool), (pad, 0, 0, pad), value=False)
        padded = loss(grown[0], F.pad(mask, (pad, 0, 0, pad), value=9), grown[1], 2.0, (), content)
        for name, value in plain.scalars().items():
            assert padded.scalars()[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("term", "own"), [("cwd", "cwd"), ("dist_intra", "dist"), ("dist_inter", "dist"), ("tckd", "dkd"), ("nckd", "dkd")]
)
def test_a_term_without_a_temperature_of_its_own_follows_the_schedule(term, own):
    student, teacher, mask = logits(3, 0), logits(3, 1), labels(3, 2)

    def value(its_own, scheduled):
        loss = DistillationLoss({term: 1.0, f"{own}_temperature": its_own}, 3)
        return loss(student, mask, teacher, scheduled).loss.item()

    assert value(None, 2.5) == value(2.5, 1.0)
    assert value(None, 2.5) != value(None, 1.5)


# compiled


def counting(backend="eager"):
    """A backend of torch.compile that counts the graphs it is given; forgets what was compiled before."""
    torch._dynamo.reset()
    return CompileCounterWithBackend(backend)


def compilable(classes):
    return {name: value for name, value in every_term(classes).items() if name != "lovasz"}


def assert_equal_to_eager(loss, eager, student, *rest):
    (found, slope), (value, gradient) = (
        value_and_gradient(lambda z: of(z, *rest).loss, student)  # noqa: B023
        for of in (loss, eager)
    )
    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slope, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_compiled_loss_is_one_graph_for_all_temperatures_and_equals_the_eager_one(classes, backend):
    """With void pixels, pictures without a mask, and padding."""
    graphs, size = counting(backend), (3, 6, 5)
    student, teacher = logits(classes, 0, size), logits(classes, 1, size)
    mask = labels(classes, 2, (2, 6, 5)).masked_fill(~some_valid(), VOID)
    content = some_valid(3, size) | ~some_valid(4, size)
    compiled = DistillationLoss(compilable(classes), classes, VOID, backend=graphs)
    for temperature in (4.0, 1.0, 2.5, 20.0):
        eager = DistillationLoss(compilable(classes), classes, VOID)
        assert_equal_to_eager(compiled, eager, student, mask, teacher, temperature, (), content)
    assert graphs.frame_count == 1


def test_a_compiled_loss_compares_features_and_follows_the_schedule_where_a_term_has_no_temperature_of_its_own():
    graphs, pairs = counting(), [(logits(4, 3), logits(4, 4))]
    weights = {"alpha": 0.5, "features": 1.0, "cwd": 1.0, "cwd_temperature": None, "gamma": 0.5}
    compiled, eager = DistillationLoss(weights, 3, VOID, backend=graphs), DistillationLoss(weights, 3, VOID)
    for temperature in (4.0, 2.0):
        assert_equal_to_eager(compiled, eager, logits(3, 0), labels(3, 2), logits(3, 1), temperature, pairs)
    assert graphs.frame_count == 1


def test_a_compiled_loss_needs_no_teacher_and_refuses_the_same_shapes():
    graphs, weights = counting(), {"gamma": 0.5, "delta": 1.0}
    compiled, eager = DistillationLoss(weights, 3, VOID, backend=graphs), DistillationLoss(weights, 3, VOID)
    void = torch.full((2, 6, 5), VOID)
    for mask in (labels(3, 2), void):
        assert_equal_to_eager(compiled, eager, logits(3, 0), mask, None, None)
    assert graphs.frame_count == 1
    with pytest.raises(ValueError, match="the mask must have the shape"):
        compiled(logits(3, 0), labels(3, 2, (2, 6, 4)), None, None)


def test_a_loss_with_lovasz_is_not_compiled():
    graphs = counting()
    compiled, eager = (DistillationLoss(every_term(3), 3, VOID, backend=each) for each in (graphs, None))
    assert_equal_to_eager(compiled, eager, logits(3, 0), labels(3, 2), logits(3, 1), 4.0)
    assert graphs.frame_count == 0


def compiled_in_processes(world):
    """The compiled loss of a shared batch, and the gradient of this process's samples."""
    student, teacher, mask = (world.share(each) for each in whole_batch(3, VOID))
    loss = DistillationLoss(compilable(3), 3, VOID, world.total, world.whole, "inductor")
    return value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)


@pytest.mark.slow
def test_a_compiled_loss_is_that_of_the_whole_batch_in_every_process():
    """With what compiles for real: it computed another loss where sums over processes were part of a graph."""
    student, teacher, mask = whole_batch(3, VOID)
    loss = DistillationLoss(compilable(3), 3, VOID)
    value, expected = value_and_gradient(lambda z: loss(z, mask, teacher, 4.0).loss, student)
    found = together.run(compiled_in_processes)
    for own, _ in found:
        torch.testing.assert_close(own, value, rtol=1e-5, atol=1e-6)
    gradient = torch.cat([each[1] for each in found]) / len(found)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
