"""A step of B3 to B0 at 640 px: how long, how much of the GPU, in which layout, compiled or not."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.machine import watched
from benchmarks.on_gpu.clock import least_ms, milliseconds, wait
from benchmarks.on_gpu.setting import Marked, context_of, live, pair, training
from benchmarks.on_gpu.supervise import On
from kd.distillation.teacher import Teacher
from kd.experiment.context import RunContext
from kd.networks.network import Network
from kd.networks.precision import compiled

SIDE = 640
GIGABYTES = {"teacher": 2.2, "student": 3.6, "step": 6.1}  # an image at 640x640, in bf16, each tensor read and written
COPY_TB_S = 4.3  # where the item that measures it was left out
STEPS = 16  # of an epoch
SECONDS = 2.5  # of a measurement; nvidia-smi looks five times a second


def step(on: On, batch: int) -> None:
    """Distillation in bf16, all blocks unfrozen, teacher live, batches in memory."""
    context = _context(on, batch)
    student, teacher = pair(context)
    on.note(**_measured(on, context, student, live(teacher, context), "step"))


def layout(on: On) -> None:
    """The same at batch 16 in each memory layout, with and without cuDNN's search for the fastest algorithm."""
    found: dict[str, Any] = {}
    for last in (True, False):
        for search in (False, True):
            torch.backends.cudnn.benchmark = search
            context = _context(on, 4 if on.small else 16, f"trainer.channels_last={last}")
            student, teacher = pair(context)
            name = f"{'channels last' if last else 'contiguous'}, cudnn.benchmark {'on' if search else 'off'}"
            found[name] = _step_ms(on, context, student, live(teacher, context), seconds=1.0)[0]
            on.note(step_ms=found)


def teacher(on: On) -> None:
    """The teacher alone, batch 16, in fp32 (TF32 as torch has it) and bf16."""
    for name, size in (("fp32", 2), ("bf16", 1)):
        context = _context(on, 4 if on.small else 16, f"trainer.precision={name}")
        ms = _answer_ms(on, context, pair(context)[1])
        on.note(**{name: _use(on, ms, context.settings.trainer.batch_size, "teacher", size)})


def compiled_teacher(on: On) -> None:
    """The teacher alone in bf16, batch 16, as it is and compiled."""
    context = _context(on, 4 if on.small else 16)
    network = pair(context)[1]
    eager = _answer_ms(on, context, network)
    on.note(eager_ms=eager)
    with _compiling(on, context) as compiling:
        seconds = _seconds(lambda: _answer_ms(on, compiling, network), context)
        fused = _answer_ms(on, compiling, network)
    on.note(compiled_ms=fused, speedup=eager / fused, seconds_to_compile=seconds)


def compiled_student(on: On) -> None:
    """A step of the student alone in bf16, batch 16, as it is and compiled; then the whole step with a live teacher."""
    context = _context(on, 4 if on.small else 16)
    student, taught_by = pair(context)
    eager = _step_ms(on, context, student, None, seconds=1.0)[0]
    on.note(eager_ms=eager)
    with _compiling(on, context) as compiling:
        compiled(student)
        seconds = _seconds(lambda: next(training(compiling, student, None, Marked(context, 1))), context)
        on.note(seconds_to_compile=seconds)
        fused = _step_ms(on, compiling, student, None, seconds=1.0)[0]
        on.note(compiled_ms=fused, speedup=eager / fused)
        whole = _step_ms(on, compiling, student, live(taught_by, compiling), seconds=1.0)[0]
    on.note(whole_step=_use(on, whole, context.settings.trainer.batch_size, "step"))


@contextmanager
def _compiling(on: On, context: RunContext) -> Iterator[RunContext]:
    """The context with trainer.compile=true. In a rehearsal on small networks torch compiles nothing."""
    trainer = context.settings.trainer.model_copy(update={"compile": True})
    with torch.compiler.set_stance("force_eager" if on.small else "default"):
        yield replace(context, settings=context.settings.model_copy(update={"trainer": trainer}))


def _context(on: On, batch: int, *overrides: str) -> RunContext:
    side = 64 if on.small else SIDE
    return context_of(on, side, batch, batch, 1, "trainer.precision=bf16", *overrides)


def _measured(on: On, context: RunContext, student: Network, teacher: Teacher | None, what: str) -> dict[str, Any]:
    """Milliseconds a step, by the device and of the host; use of the GPU; the most memory."""
    device, batch = context.precision.device, context.settings.trainer.batch_size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with watched(device) as busy:
        step_ms, host_ms = _step_ms(on, context, student, teacher, SECONDS)
    found = _use(on, step_ms, batch, what) | {"host_ms": host_ms}
    found["utilisation"] = statistics.fmean(busy[1:]) / 100 if busy[1:] else None
    if device.type == "cuda":
        found["memory_gib"] = {"allocated": torch.cuda.max_memory_allocated() / 2**30,
                               "reserved": torch.cuda.max_memory_reserved() / 2**30}  # fmt: skip
    return found


def _step_ms(
    on: On, context: RunContext, student: Network, teacher: Teacher | None, seconds: float
) -> tuple[float, float]:
    """Median milliseconds from one step to the next in the device's queue, and that the host took to give one out."""
    batches = Marked(context, 3 if on.small else STEPS)
    epochs, device = training(context, student, teacher, batches), context.precision.device
    next(epochs)  # warms up
    found: list[float] = []
    end = time.perf_counter() + (0 if on.small else seconds)
    while not found or time.perf_counter() < end:
        next(epochs)
        found += milliseconds(batches.moments, device)
    batches.waits = True
    next(epochs)
    return statistics.median(found), statistics.median(batches.host_ms)


def _answer_ms(on: On, context: RunContext, network: Network) -> float:
    answer, device = live(network, context), context.precision.device
    batch = Marked(context, 1).batches[0].to(device)
    return least_ms(lambda: answer(batch), device, 2 if on.small else 20, 1 if on.small else 5)


def _use(on: On, ms: float, batch: int, what: str, size: int = 1) -> dict[str, float | None]:
    """Images per second, and the share of the time that memory alone needs, where the networks are the big ones."""
    copied = on.found.get("machine", {}).get("copy_tb_s", COPY_TB_S)
    floor = batch * size * GIGABYTES[what] / copied  # GB over TB/s are ms
    share = None if on.small else floor / ms
    return {"step_ms": ms, "images_per_second": 1000 * batch / ms, "share_of_roofline": share}


def _seconds(function: Callable[[], object], context: RunContext) -> float:
    begun = time.perf_counter()
    function()
    wait(context.precision.device)
    return time.perf_counter() - begun
