"""What each term of the loss costs in a step: time, and bytes that it keeps for the backward pass.

    python -m benchmarks.terms          # on random logits of 256x256; features of EfficientNet-B3 at 1/32

A table for one foreground logit and for 11 classes. Each term is measured alone, forward and backward, and by turns.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.rounds import race
from kd.distillation.losses import DistillationLoss
from kd.settings import TASK_TERMS, TEACHING_TERMS
from kd.settings.loss import THREE_CLASSES

CHANNELS, STRIDE = 384, 32  # of the features of an EfficientNet-B3, `loss.feature_stages=[5]`
CLASSES = (1, 11)
TERMS = TEACHING_TERMS | TASK_TERMS


class Term:
    """One term's share of a training step, on random logits, masks and features.

    Args:
        size: height and width of the pictures.
        batch: how many they are.
    """

    def __init__(self, term: str, classes: int, size: int, batch: int) -> None:
        random = torch.Generator().manual_seed(0)
        shape, features = (batch, classes, size, size), (batch, CHANNELS, size // STRIDE, size // STRIDE)
        self.loss = DistillationLoss({TERMS[term]: 1.0}, classes)
        self.student = torch.randn(shape, generator=random, requires_grad=True)
        self.teacher = torch.randn(shape, generator=random)
        self.mask = torch.randint(0, max(2, classes), (batch, size, size), generator=random)
        self.projected = torch.randn(features, generator=random, requires_grad=True)
        self.features = torch.randn(features, generator=random)

    def forward(self) -> Tensor:
        return self.loss(self.student, self.mask, self.teacher, 4.0, [(self.projected, self.features)]).loss

    def steps(self) -> Iterator[None]:
        """Forward and backward, once for each `next`."""
        while True:
            self.forward().backward()
            self.student.grad = self.projected.grad = None
            yield

    def kept(self) -> int:
        """Bytes that the forward pass keeps for the backward one, the logits and masks themselves not counted."""
        found: dict[int, int] = {}
        given = {each.untyped_storage().data_ptr() for each in vars(self).values() if isinstance(each, Tensor)}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            kept_alive = self.forward()
        del kept_alive
        return sum(size for place, size in found.items() if place not in given)


def table(size: int, batch: int, rounds: int, said: Callable[[int], None] = lambda turn: None) -> str:
    """A row for each term: milliseconds and megabytes an image, for each number of classes that it is defined for."""
    terms = {
        f"{name} {classes}": Term(name, classes, size, batch)
        for name in TERMS
        for classes in CLASSES
        if classes > 1 or TEACHING_TERMS.get(name) not in THREE_CLASSES
    }
    seconds = race({name: term.steps() for name, term in terms.items()}, rounds, said=said)
    rows = [
        "| term | ms an image, 1 logit | MB kept | ms an image, 11 classes | MB kept |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in TERMS:
        cells = [name]
        for key in (f"{name} {classes}" for classes in CLASSES):
            if key in terms:
                cells += [
                    f"{1000 * statistics.median(seconds[key]) / batch:.2f}",
                    f"{terms[key].kept() / batch / 1e6:.2f}",
                ]
            else:
                cells += ["-", "-"]
        rows.append(f"| {' | '.join(cells)} |")
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
