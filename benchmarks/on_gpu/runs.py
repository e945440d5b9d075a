"""Whole runs of train.py: the same twice, the same after a stop, and the exit code of a group that is stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.crash import PROJECT, outcome, weights
from benchmarks.on_gpu.setting import PAIR, SMALL_PAIR
from benchmarks.on_gpu.supervise import On, end

NOT_REPEATED = re.compile(r"(\w+) does not have a deterministic implementation")
PATIENCE = 100.0  # seconds for a run, and for its first two epochs


class Run:
    """A train.py in a session of its own, with a folder of its own as its project root."""

    def __init__(self, on: On, name: str, arguments: Sequence[str]) -> None:
        self.root = on.shared / name
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = self.root / "log"
        env = {**os.environ, "KD_ROOT": str(self.root), **({"OMP_NUM_THREADS": "1"} if on.small else {})}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "train.py"), *arguments],
                env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=PROJECT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process.pid)
        self.process.wait()

    def folder(self) -> Path | None:
        """The run's folder; None before there is one."""
        found = [path.parent for path in self.root.glob("runs/*/*/metrics.jsonl") if "teachers" not in path.parts]
        return found[0] if found else None

    def until_epoch(self, epochs: int) -> None:
        """Wait until so many epochs of the student are over, or the run is."""
        stop = time.monotonic() + PATIENCE
        while time.monotonic() < stop and self.process.poll() is None:
            folder = self.folder()
            if folder and (folder / "metrics.jsonl").read_text().count("\n") >= epochs:
                return
            time.sleep(0.01)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def result(self) -> dict[str, Any]:
        """Weights and epochs of the run, and its teacher's weights.

        Raises:
            RuntimeError: the run did not come to its end.
        """
        folder = self.folder()
        if folder is None or not (folder / "summary.json").exists():
            raise RuntimeError(f"train.py ended with {self.process.poll()}: {self.log.read_text()[-500:]}")
        teachers = [weights(file) for file in sorted(self.root.glob("runs/teachers/*/*.safetensors"))]
        return {**outcome(folder), "teacher": teachers}


def _arguments(on: On, *more: str) -> list[str]:
    side, images, epochs = (32, 16, 4) if on.small else (128, 192, 8)
    return [
        *(SMALL_PAIR if on.small else PAIR), f"data.image_size=[{side},{side}]", f"data.train={images}", "data.val=8",
        "data.test=8",
        f"trainer.epochs={epochs}", "teacher.epochs=1", "unfreeze.start_epoch=1", "unfreeze.rate=1", "tracking=none",
        "pictures=false", f"trainer.device={on.device}", "trainer.deterministic=true", "trainer.workers=2", *more,
    ]  # fmt: skip


def repeated(on: On) -> None:
    """`deterministic=true` in fp32: twice, and once with a SIGTERM after two epochs and a resume; all at once."""
    arguments = _arguments(on)
    with ExitStack() as stack:
        runs = {name: stack.enter_context(Run(on, name, arguments)) for name in ("one", "two", "cut")}
        runs["cut"].until_epoch(2)
        runs["cut"].process.send_signal(signal.SIGTERM)
        code = runs["cut"].wait()
        on.note(code_after_sigterm=code)
        on.check("SIGTERM ends with 143", code == 143)
        resumed = stack.enter_context(Run(on, "cut", [f"resume={runs['cut'].folder()}"]))
        for run in (runs["one"], runs["two"]):
            run.wait()
        one, two = runs["one"].result(), runs["two"].result()
        on.note(without_a_deterministic_form=sorted(set(NOT_REPEATED.findall(runs["one"].log.read_text()))))
        _compare(on, "twice", one, two)
        resumed.wait()
        _compare(on, "stopped and resumed", one, resumed.result())


def _compare(on: On, how: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    for what in ("teacher", "weights", "epochs"):
        on.check(f"{how}: the same {what}", one[what] == other[what])


def group(on: On) -> None:
    """SIGTERM to every process of a run at once, loader workers included, as a scheduler sends it."""
    workers = 2 if on.small else 4
    with Run(on, "group", _arguments(on, f"trainer.workers={workers}", "trainer.epochs=200")) as run:
        run.until_epoch(2)
        begun = time.monotonic()
        os.killpg(run.process.pid, signal.SIGTERM)
        code = run.wait()
        on.note(code=code, seconds_to_end=round(time.monotonic() - begun, 2))
        on.check("SIGTERM to the group ends with 143", code == 143)
        if code != 143:
            on.note(said=run.log.read_text().strip().splitlines()[-1:])
