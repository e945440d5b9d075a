"""Whether the GPU computes what the CPU does, and whether half precision trains at all."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.on_gpu.setting import InMemory, apart, context_of, live, pair, relative, tf32, training
from benchmarks.on_gpu.supervise import On
from kd.errors import UserError
from kd.experiment.builders import build_loss
from kd.experiment.context import RunContext
from kd.networks.network import Network
from kd.networks.precision import Precision


class DrawnOnCpu(TorchFunctionMode):
    """Within this mode stochastic depth draws the same numbers on every device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.rand:
            device = kwargs.pop("device", "cpu")
            return torch.rand(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def fp32(on: On) -> None:
    """The same training on the CPU and on the GPU, in fp32: TF32 off, then on."""
    side, batch, steps = (64, 4, 2) if on.small else (128, 8, 8)
    begun = context_of(on, side, batch, 2 * batch, 1, "trainer.device=cpu")
    networks, batches = pair(begun), InMemory(begun, 1)
    expected = _trained(begun, networks, batches, steps)
    on.note(cpu={"first": expected["first"], "losses": expected["losses"]})
    for name, rounded in (("tf32_off", False), ("tf32_on", True)):
        there = replace(begun, precision=Precision(torch.device(on.device), "fp32", begun.precision.channels_last))
        with tf32(rounded):
            found = _trained(there, networks, batches, steps)
        differences = {
            "first_loss": relative(found["first"]["loss"], expected["first"]["loss"]),
            "first_gradient_norm": relative(found["first"]["norm"], expected["first"]["norm"]),
            "losses": [relative(*each) for each in zip(found["losses"], expected["losses"], strict=True)],
            "weights": apart(found["student"], expected["student"]),
        }
        on.note(**{name: differences})
        if not rounded:
            on.check("first loss within 1e-5 of the CPU's", differences["first_loss"] <= 1e-5)
            on.check("first gradient's norm within 1e-3 of the CPU's", differences["first_gradient_norm"] <= 1e-3)


def _trained(context: RunContext, networks: tuple[Network, Network], batches: InMemory, steps: int) -> dict[str, Any]:
    """Copies of the networks, trained: loss and gradient norm of the first step, the loss of each, the student."""
    student, teacher = (context.precision.place(copy.deepcopy(network)) for network in networks)
    with DrawnOnCpu():
        first = _first(context, copy.deepcopy(student), teacher, batches)
        epochs = training(context, student, live(teacher, context), batches)
        losses = [result.train["loss"] for result in islice(epochs, steps)]
    return {"first": first, "losses": losses, "student": student}


def _first(context: RunContext, student: Network, teacher: Network, batches: InMemory) -> dict[str, float]:
    batch, settings = batches.batches[0].to(context.precision.device), context.settings
    student.unfreeze(len(student.partition.blocks))
    torch.manual_seed(0)
    logits = student.train()(batch.images)
    (answers,) = live(teacher, context)(batch)
    loss = build_loss(context, settings.loss.model_dump())(logits, batch.masks, answers, 4.0).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([each.grad for each in student.parameters() if each.grad is not None])
    return {"loss": loss.item(), "norm": norm.item()}


def half(on: On) -> None:
    """Trainings in bf16 and fp16 beside one in fp32: losses, and the steps that fp16's scale was too high for."""
    side, batch, steps = (64, 4, 2) if on.small else (256, 8, 24)
    reference = None
    for name in ("fp32", "bf16", "fp16"):
        context = context_of(on, side, batch, 2 * batch, 1, f"trainer.precision={name}")
        with _said(on, name):
            student, teacher = pair(context)
            results = list(islice(training(context, student, live(teacher, context), InMemory(context, 1)), steps))
            losses = [result.train["loss"] for result in results]
            reference = reference or losses
            found = {"first": losses[0], "last": losses[-1], "first_to_fp32": relative(losses[0], reference[0])}
            if name == "fp16":
                found["overflows"] = sum(result.train["overflows"] for result in results)
            on.note(**{name: found})
            on.check(f"{name}: every loss finite", all(map(math.isfinite, losses)))
            on.check(f"{name}: every weight finite", all(p.isfinite().all().item() for p in student.parameters()))


@contextmanager
def _said(on: On, name: str) -> Iterator[None]:
    """One precision that diverges does not keep the others from being tried."""
    try:
        yield
    except UserError as error:
        on.note(**{name: str(error)})
        on.check(f"{name}: every loss finite", False)
