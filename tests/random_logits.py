"""Random logits, labels and valid pixels for tests of losses, and a loss's value with its gradient.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary.
"""

import math

import torch


def logits(classes, seed, size=(2, 6, 5), scale=3.0):
    """Random B x C x H x W logits."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, height, width, generator=generator)


def labels(classes, seed, size=(2, 6, 5)):
    """Random B x H x W labels in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, max(classes, 2), size, generator=generator)
    mask.view(-1)[: max(classes, 2)] = torch.arange(max(classes, 2))
    return mask


def some_valid(seed=7, size=(2, 6, 5)):
    """A B x H x W mask with valid and ignored pixels."""
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) > 0.4


def log_probabilities(pixel, temperature):
    """log softmax(pixel / temperature) of one pixel's logits, in float64 Python."""
    scaled = [value / temperature for value in pixel]
    top = max(scaled)
    log_sum = top + math.log(math.fsum(math.exp(value - top) for value in scaled))
    return [value - log_sum for value in scaled]


def value_and_gradient(loss, student_BCHW):
    """The loss of a student and its gradient with respect to the student's logits."""
    leaf = student_BCHW.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    return value.detach(), leaf.grad
