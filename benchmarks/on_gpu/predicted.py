"""What was predicted before the first run on a GPU, beside what was found, as a table for docs/speed.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OFF = 1.5  # a figure that is so many times over or under its prediction is flagged, and to be explained


@dataclass(frozen=True)
class Predicted:
    """A figure, where it stands (item, then keys), and between what it should lie; None where nothing was predicted."""

    title: str
    where: str
    low: float | None = None
    high: float | None = None


# On an H200. Memory: 4.3 TB/s, of which unfused kernels reach 0.55 to 0.7. Launches: about 1,500 a step, of 8 to 12 us.
FIGURES = (
    Predicted("matrix product in fp32, TFLOP/s", "machine/matmul_tflops/fp32", 45, 60),
    Predicted("the same in TF32", "machine/matmul_tflops/tf32", 350, 450),
    Predicted("the same in bf16", "machine/matmul_tflops/bf16", 750, 900),
    Predicted("copy, TB/s read and written", "machine/copy_tb_s", 4.2, 4.4),
    *(Predicted(f"640 px step, batch {batch}: images/s", f"step_{batch}/images_per_second", *images)
      for batch, images in ((4, (200, 350)), (16, (400, 500)), (64, (400, 500)))),
    *(Predicted(f"640 px step, batch {batch}: share of the roofline", f"step_{batch}/share_of_roofline", *share)
      for batch, share in ((4, (0.28, 0.5)), (16, (0.55, 0.7)), (64, (0.55, 0.7)))),
    *(Predicted(f"640 px step, batch {batch}: host, ms", f"step_{batch}/host_ms", low, high)
      for batch, low, high in ((4, 11, 20), (16, 11, 20))),
    *(Predicted(f"640 px step, batch {batch}: memory, GiB", f"step_{batch}/memory_gib/allocated", low, high)
      for batch, low, high in ((4, 2.5, 6), (16, 10, 20), (64, 38, 76))),
    *(Predicted(f"640 px step, batch {batch}: utilisation", f"step_{batch}/utilisation", low, 1.0)
      for batch, low in ((4, 0.5), (16, 0.95), (64, 0.95))),
    *(Predicted(f"loader, {recipe}, {workers} workers: images/s", f"loader_{recipe}/{workers}_workers/from_memory",
                rate * workers, rate * workers)
      for recipe, rate in (("heavy", 34), ("light", 320)) for workers in (8, 16)),
    *(Predicted(f"loader, {recipe}, {workers} workers: share of a training that waited",
                f"loader_{recipe}/{workers}_workers/share_waited", *share)
      for recipe, workers, share in (
          ("heavy", 8, (0.3, 0.5)), ("heavy", 16, (0, 0.2)), ("light", 8, (0, 0.1)), ("light", 16, (0, 0.1)))),
    *(Predicted(f"cache, {classes} class(es), {state}: ms a step", f"cache_{classes}/ms_a_step/{state}", low, high)
      for classes, state, low, high in (
          (1, "off", 32, 40), (1, "cold", 32, 42), (1, "warm", 20, 26),
          (20, "off", 48, 60), (20, "cold", 50, 75), (20, "warm", 36, 48))),
    *(Predicted(f"step, {name}: ms", f"layout/step_ms/{name}", low, high) for name, low, high in (
        ("channels last, cudnn.benchmark off", 32, 40), ("channels last, cudnn.benchmark on", 30, 40),
        ("contiguous, cudnn.benchmark off", 35, 60), ("contiguous, cudnn.benchmark on", 35, 60))),
    Predicted("teacher alone, fp32: images/s", "teacher/fp32/images_per_second", 530, 680),
    Predicted("teacher alone, bf16: images/s", "teacher/bf16/images_per_second", 1050, 1370),
    Predicted("teacher, compiled over eager", "compiled_teacher/speedup", 1.5, 2.2),
    Predicted("student, compiled over eager", "compiled_student/speedup", 1.5, 2.2),
    Predicted("640 px step, batch 16, both compiled: images/s", "compiled_student/whole_step/images_per_second",
              900, 1100),
    Predicted("seconds to compile the student", "compiled_student/seconds_to_compile", 40, 120),
)  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Predicted against measured, and what had to hold, in Markdown."""
    return "\n".join([
        "| | predicted | measured | |", "| --- | ---: | ---: | --- |", *_figures(lines), "",
        "| must hold | on | |", "| --- | --- | --- |", *_laws(lines),
    ])  # fmt: skip


def _figures(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found = {line["item"]: line.get("figures", {}) for line in lines}
    for each in FIGURES:
        item = each.where.partition("/")[0]
        value = _at(found, each.where)
        if value is not None:
            said = "dry run" if found[item].get("small") else flag(value, each)
            yield f"| {each.title} | {_range(each)} | {value:.3g} | {said} |"


def _laws(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for line in lines:
        for law, holds in line.get("checks", {}).items():
            yield f"| {law} | {line['item']} | {'yes' if holds else '**no**'} |"
        if "error" in line:
            yield f"| | {line['item']} | **{line['status']}**: {line['error']} |"


def flag(value: float, each: Predicted) -> str:
    """By how many times a figure misses its prediction, where that is much."""
    if each.low is None or each.high is None or value <= 0:
        return ""
    times = max(each.low / value, value / each.high)
    return f"**off by {times:.1f}x**" if times > OFF else ""


def _range(each: Predicted) -> str:
    if each.low is None:
        return "-"
    return f"{each.low:g}" if each.low == each.high else f"{each.low:g} to {each.high:g}"


def _at(found: Mapping[str, Any], where: str) -> float | None:
    value: Any = found
    for key in where.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None
