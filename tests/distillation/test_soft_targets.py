"""Laws of standardised and decoupled soft targets; `test_losses.py` has those of the plain KL.

References: float64 loops over pixels, and the identity by which decoupled terms make up the KL.
"""

import itertools
import math

import pytest
import torch
from random_logits import labels, log_probabilities, logits, some_valid, value_and_gradient

from kd.distillation.soft_targets import multiclass_kl, other_classes_kl, standardised, target_kl

VOID = 255


def per_pixel(student, teacher, mask):
    """(student's logits, teacher's logits, label) of each pixel, as Python numbers."""
    batch, _, height, width = student.shape
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        yield student[b, :, y, x].tolist(), teacher[b, :, y, x].tolist(), int(mask[b, y, x])


def kl(log_p, log_q):
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def slow_target(student, teacher, label, temperature):
    def two(pixel):
        log_p = log_probabilities(pixel, temperature)
        return [log_p[label], math.log(math.fsum(math.exp(p) for c, p in enumerate(log_p) if c != label))]

    return temperature**2 * kl(two(teacher), two(student))


def slow_others(student, teacher, label, temperature):
    others = [[z for c, z in enumerate(pixel) if c != label] for pixel in (teacher, student)]
    return temperature**2 * kl(*(log_probabilities(pixel, temperature) for pixel in others))


@pytest.mark.parametrize(("term", "slow"), [(target_kl, slow_target), (other_classes_kl, slow_others)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_decoupled_term_equals_its_papers_formula(term, slow, temperature):
    student, teacher, mask = logits(5, 0), logits(5, 1), labels(5, 2)
    each = [slow(*pixel, temperature) for pixel in per_pixel(student, teacher, mask)]
    expected = math.fsum(each) / len(each)
    assert term(student, teacher, mask, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_the_kl_is_the_target_term_and_the_others_by_their_probability():
    student, teacher = logits(5, 0, (1, 1, 1)), logits(5, 1, (1, 1, 1))
    mask = torch.tensor([[[2]]])
    rest = 1 - teacher.softmax(1)[0, 2, 0, 0].item()
    parts = target_kl(student, teacher, mask, 1.0).item() + rest * other_classes_kl(student, teacher, mask, 1.0).item()
    assert multiclass_kl(student, teacher, 1.0).item() == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize("term", [target_kl, other_classes_kl])
def test_void_pixels_change_neither_value_nor_gradient_of_a_decoupled_term(term):
    student, teacher, valid = logits(5, 0), logits(5, 1), some_valid()
    mask = labels(5, 2).masked_fill(~valid, VOID)
    expected, expected_gradient = value_and_gradient(lambda z: term(z, teacher, mask, 4.0, valid), student)
    void = ~valid[:, None].expand_as(student)
    dirty = torch.where(void, -1e4, teacher)
    value, gradient = value_and_gradient(lambda z: term(z, dirty, mask, 4.0, valid), torch.where(void, 1e4, student))
    assert value == expected
    assert torch.equal(gradient, expected_gradient)


def test_standardised_logits_have_mean_0_and_deviation_1_over_classes():
    z = standardised(logits(5, 0))
    torch.testing.assert_close(z.mean(1), torch.zeros_like(z[:, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones_like(z[:, 0]))


def test_the_kl_of_standardised_logits_ignores_the_size_and_offset_of_a_networks_logits():
    student, teacher = logits(5, 0), logits(5, 1)
    plain = multiclass_kl(standardised(student), standardised(teacher), 2.0).item()
    moved = multiclass_kl(standardised(3 * student + 5), standardised(0.2 * teacher - 1), 2.0).item()
    assert moved == pytest.approx(plain, rel=1e-4)


def test_equal_logits_are_standardised_to_zeros_with_a_finite_gradient():
    value, gradient = value_and_gradient(lambda z: standardised(z).square().sum(), torch.full((1, 4, 2, 2), 3.0))
    assert value == 0
    assert torch.isfinite(gradient).all()
