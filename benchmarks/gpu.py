"""`make gpu`: what only a GPU can tell, in at most eight minutes; `benchmarks/GPU.md` says what is asked.

Prints a JSON line for each item, the most valuable first, and writes them to benchmarks/gpu.json; a table of predicted
against measured comes at the end, on stderr. An item that hangs is cut off, one that crashes is reported, and the
others still run. Without CUDA everything is as small as it can be, and nothing is written.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --only fp32,step_16
    python -m benchmarks.gpu --table
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.on_gpu.predicted import table
from benchmarks.on_gpu.supervise import GRACE, Item, end_children, forks, run

RESULTS = Path(__file__).with_name("gpu.json")
TOTAL = 8 * 60.0  # seconds, whatever hangs
LEAST = 2.0  # seconds that are worth beginning an item for

ITEMS = [
    Item(name, f"benchmarks.on_gpu.{where}", limit, tuple(arguments))
    for name, where, limit, *arguments in (
        ("machine", "foundation:machine", 60),
        ("fp32", "agreement:fp32", 60),
        ("half", "agreement:half", 40),
        ("syncs", "syncs:syncs", 40),
        ("repeated", "runs:repeated", 100),
        ("group", "runs:group", 50),
        ("batch_norm", "together:normalised", 20),
        ("two_processes", "together:two_processes", 45),
        ("step_16", "steps:step", 30, 16),
        ("step_4", "steps:step", 30, 4),
        ("step_64", "steps:step", 30, 64),
        ("loader_heavy", "loading:loader", 45, "heavy"),
        ("loader_light", "loading:loader", 45, "light"),
        ("cache_1", "cached:cache", 40, 1),
        ("cache_20", "cached:cache", 45, 20),
        ("teacher", "steps:teacher", 25),
        ("layout", "steps:layout", 45),
        ("compiled_teacher", "steps:compiled_teacher", 90),
        ("compiled_student", "steps:compiled_student", 150),
    )
]


def main(arguments: list[str] | None = None) -> None:
    asked = _asked(arguments)
    if asked.table:
        print(table(json.loads((asked.out or RESULTS).read_text())["lines"]))
        return
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for a GPU spoils no later fork
    forks.set_forkserver_preload(["benchmarks.on_gpu.preload"])
    watch = _end_at_last(asked.seconds)
    try:
        lines = measured(asked.only or ITEMS, asked.dry, asked.seconds - 2 * GRACE, asked.out)
    finally:
        watch.cancel()
        end_children()
    print(table(lines), file=sys.stderr)
    sys.exit(any(line["status"] != "ok" for line in lines))


def measured(items: Sequence[Item], small: bool, seconds: float, out: Path | None = None) -> list[dict[str, Any]]:
    """The line of every item, printed when it is over; those for which no time is left are not begun."""
    end, lines = time.monotonic() + seconds, []
    with TemporaryDirectory(ignore_cleanup_errors=True) as shared:
        for item in items:
            left, found = end - time.monotonic(), {line["item"]: line.get("figures", {}) for line in lines}
            if left < LEAST:
                line: dict[str, Any] = {"item": item.name, "status": "not begun", "error": "no time was left"}
            else:
                line = run(item, small, Path(shared), found, min(item.limit * max(1.0, seconds / TOTAL), left))
            lines.append(_rounded(line))
            print(json.dumps(lines[-1]), flush=True)
            _write(lines, out)
    return lines


def _write(lines: Sequence[dict[str, Any]], out: Path | None) -> None:
    """All lines so far, to be safe from what comes after; small ones mean nothing, and go where one says."""
    if out is None and any(line.get("figures", {}).get("small", True) for line in lines[:1]):
        return
    kept = [{name: value for name, value in line.items() if name != "log"} for line in lines]  # it names folders
    (out or RESULTS).write_text(json.dumps({"lines": kept}, indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Floats to five figures: a line is read by people."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _end_at_last(seconds: float) -> threading.Timer:
    """End this process and all its children after so many seconds, whatever it waits for."""

    def ended() -> None:
        print(json.dumps({"item": "all", "status": "hung", "error": f"ended after {seconds:.0f} s"}), flush=True)
        end_children()
        os._exit(1)

    timer = threading.Timer(seconds, ended)
    timer.daemon = True
    timer.start()
    return timer


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_items, help=f"some of {','.join(item.name for item in ITEMS)}")
    parser.add_argument("--dry", action="store_true", help="as small as it can be, as without CUDA")
    parser.add_argument("--seconds", type=float, default=TOTAL,
                        help="after which the whole ends (480); with more, each item has more as well")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where to write (benchmarks/gpu.json; nowhere if small)")
    parser.add_argument("--table", action="store_true", help="print the table of what was written, and measure nothing")
    return parser.parse_args(arguments)


def _items(text: str) -> list[Item]:
    known = {item.name: item for item in ITEMS}
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not an item; choose from {','.join(known)}")
    return [known[name] for name in text.split(",")]


if __name__ == "__main__":
    main()
