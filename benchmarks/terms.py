"""What each term of the loss costs in a step: time, and bytes that it keeps for the backward pass.

    python -m benchmarks.terms          # on random logits of 256x256; features of EfficientNet-B3 at 1/32

A table for one foreground logit and for 11 classes. Each term is measured alone, forward and backward, and by turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kd.distillation.losses import DistillationLoss
from kd.settings import TASK_TERMS, TEACHING_TERMS
from kd.settings.loss import THREE_CLASSES

#: K, stride of the features of an EfficientNet-B3 and a B0 at stage 5; see `loss.feature_stages`.
CHANNELS, STRIDE = 384, 32


def cost(classes: int, term: str, size: int, batch: int) -> Callable[[], tuple[float, int]]:
    """A function that takes one step's share of a term; returns seconds and bytes kept for the backward pass."""
    weight = (TEACHING_TERMS | TASK_TERMS)[term]
    loss = DistillationLoss({weight: 1.0}, classes)
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(batch, classes, size, size, generator=random) for _ in range(2))
    mask = torch.randint(0, max(2, classes), (batch, size, size), generator=random)
    one, other = (torch.randn(batch, CHANNELS, size // STRIDE, size // STRIDE, generator=random) for _ in range(2))
    student, one = student.requires_grad_(), one.requires_grad_()

    def step() -> tuple[float, int]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = loss(student, mask, teacher, 4.0, [(one, other)]).loss
        found.backward()
        seconds, student.grad, one.grad = time.perf_counter() - began, None, None
        given = {each.untyped_storage().data_ptr() for each in (student, teacher, mask, one, other)}
        return seconds, sum(size for place, size in kept.items() if place not in given)

    return step


def table(size: int, batch: int, rounds: int) -> str:
    rows = [
        "| term | ms an image, 1 logit | MB kept | ms an image, 11 classes | MB kept |",
        "|---|---:|---:|---:|---:|",
    ]
    steps = {
        (term, classes): cost(classes, term, size, batch)
        for term in TEACHING_TERMS | TASK_TERMS
        for classes in (1, 11)
        if classes > 1 or TEACHING_TERMS.get(term) not in THREE_CLASSES
    }
    found: dict[tuple[str, int], list[tuple[float, int]]] = {which: [] for which in steps}
    for number in range(rounds + 1):
        for which, step in steps.items():
            if number:  # the first round warms up
                found[which].append(step())
            else:
                step()
    for term in TEACHING_TERMS | TASK_TERMS:
        cells = [term]
        for classes in (1, 11):
            taken = found.get((term, classes))
            each = statistics.median(seconds for seconds, _ in taken) / batch if taken else None
            cells += ["-", "-"] if each is None else [f"{1000 * each:.2f}", f"{taken[0][1] / batch / 1e6:.2f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    print(table(asked.size, asked.batch, asked.rounds))


if __name__ == "__main__":
    main()
