"""Laws of the terms that carry structure. References: float64 loops over pictures, channels and pixels; corrcoef.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_logits import logits, some_valid, value_and_gradient

from kd.distillation.structure import channel_wise_kl, inter_class_relation, intra_class_relation

SIZE = (2, 6, 5)
TERMS = {"cwd": channel_wise_kl, "inter": inter_class_relation, "intra": intra_class_relation}
CASES = [(name, classes) for name in TERMS for classes in (1, 3, 5) if (name, classes) != ("inter", 1)]


def gradient_of(term, student_BCHW, *arguments):
    """A term's value, and its gradient with respect to the student's logits."""
    return value_and_gradient(lambda leaf: term(leaf, *arguments), student_BCHW)


def softmax(values):
    top = max(values)
    exponentials = [math.exp(value - top) for value in values]
    return [each / math.fsum(exponentials) for each in exponentials]


def slow_cwd(student, teacher, temperature, valid):
    """Equations 2 to 4 of the paper, one channel of one picture at a time, over valid pixels."""
    pictures = []
    for b in range(len(student)):
        if not valid[b].any():
            continue
        channels = []
        for c in range(student.shape[1]):
            q, p = (softmax((z[b, c][valid[b]].double() / temperature).tolist()) for z in (student, teacher))
            channels.append(
                temperature**2 * math.fsum(p_i * math.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True))
            )
        pictures.append(math.fsum(channels) / len(channels))
    return math.fsum(pictures) / len(pictures)


def probabilities(z, temperature):
    z = z.double() / temperature
    return (z.sigmoid() if z.shape[1] == 1 else z.softmax(1)).numpy()


def slow_inter(student, teacher, temperature, valid):
    s, t = probabilities(student, temperature), probabilities(teacher, temperature)
    places = [place for place in itertools.product(*map(range, valid.shape)) if valid[place]]
    return float(np.mean([1 - np.corrcoef(s[b, :, y, x], t[b, :, y, x])[0, 1] for b, y, x in places]))


def slow_intra(student, teacher, temperature, valid):
    s, t = (probabilities(z, temperature).transpose(1, 0, 2, 3)[:, valid.numpy()] for z in (student, teacher))
    return float(np.mean([1 - np.corrcoef(s[c], t[c])[0, 1] for c in range(len(s))]))


SLOW = {"cwd": slow_cwd, "inter": slow_inter, "intra": slow_intra}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_term_equals_its_papers_formula(name, classes, masked, temperature):
    student, teacher = logits(classes, 0), logits(classes, 1)
    valid = some_valid() if masked else torch.ones(SIZE, dtype=torch.bool)
    expected = SLOW[name](student, teacher, temperature, valid)
    found = TERMS[name](student, teacher, temperature, valid if masked else None).item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name, classes):
    teacher = logits(classes, 0)
    value, gradient = gradient_of(TERMS[name], teacher, teacher, 2.0)
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


@given(st.floats(-30, 30), st.floats(-30, 30), st.sampled_from([1, 4]))
def test_cwd_ignores_a_constant_added_to_a_channel(student_shift, teacher_shift, classes):
    student, teacher = logits(classes, 0), logits(classes, 1)
    plain = channel_wise_kl(student, teacher, 4.0).item()
    assert channel_wise_kl(student + student_shift, teacher + teacher_shift, 4.0).item() == pytest.approx(
        plain, rel=1e-3
    )


@pytest.mark.parametrize("classes", [1, 3])
def test_cwd_does_not_depend_on_the_image_size(classes):
    """A softmax over a picture tiled twice halves every probability of student and teacher."""
    student, teacher = logits(classes, 0), logits(classes, 1)
    tiled = channel_wise_kl(student.repeat(1, 1, 2, 3), teacher.repeat(1, 1, 2, 3), 4.0)
    assert tiled.item() == pytest.approx(channel_wise_kl(student, teacher, 4.0).item(), rel=1e-4)


@pytest.mark.parametrize("name", ["inter", "intra"])
def test_a_relation_ignores_how_certain_a_network_is(name):
    """Probabilities that are moved towards their mean are as correlated as before."""
    p, teacher = logits(3, 0).softmax(1), logits(3, 1)
    milder = (0.5 * p + 0.5 / 3).log()
    found = TERMS[name](milder, teacher, 1.0).item()
    assert found == pytest.approx(TERMS[name](p.log(), teacher, 1.0).item(), rel=1e-4)


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_without_a_valid_mask_all_pixels_are_valid(name, classes):
    pair, everywhere = (logits(classes, 0), logits(classes, 1)), torch.ones(SIZE, dtype=torch.bool)
    assert TERMS[name](*pair, 2.0, everywhere).item() == pytest.approx(TERMS[name](*pair, 2.0).item(), rel=1e-5)


@pytest.mark.parametrize("garbage", [77.0, -1e4, 1e30])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_void_pixels_change_neither_value_nor_gradient(name, classes, garbage):
    student, teacher, valid = logits(classes, 0), logits(classes, 1), some_valid()
    expected, expected_gradient = gradient_of(TERMS[name], student, teacher, 2.0, valid)
    void = ~valid[:, None].expand_as(student)
    signs = logits(classes, 3).sign()
    dirty = torch.where(void, garbage * signs, student), torch.where(void, -garbage * signs, teacher)
    value, gradient = gradient_of(TERMS[name], *dirty, 2.0, valid)
    assert value == expected
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_batch_without_valid_pixels_is_zero_with_zero_gradient(name, classes):
    nowhere = torch.zeros(SIZE, dtype=torch.bool)
    value, gradient = gradient_of(TERMS[name], logits(classes, 0), logits(classes, 1), 2.0, nowhere)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("classes", [1, 3])
def test_a_picture_without_valid_pixels_does_not_count_in_cwd(classes):
    student, teacher, valid = logits(classes, 0), logits(classes, 1), some_valid()
    valid[1] = False
    alone = channel_wise_kl(student[:1], teacher[:1], 4.0, valid[:1]).item()
    assert channel_wise_kl(student, teacher, 4.0, valid).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_extreme_half_precision_logits_give_finite_values_and_gradients(name, classes, dtype):
    student, teacher = (logits(classes, seed, scale=1e4).to(dtype) for seed in (0, 1))
    value, gradient = gradient_of(TERMS[name], student, teacher, 1.0)
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_student_that_says_the_same_everywhere_gets_a_finite_gradient(name, classes):
    value, gradient = gradient_of(TERMS[name], torch.zeros(2, classes, 6, 5), logits(classes, 1), 1.0)
    assert value > 0
    assert torch.isfinite(gradient).all()
