"""What is paid beside training: the start of the program, checkpoints and MLflow, memory."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.case import Case
from benchmarks.memory import WAYS
from benchmarks.rounds import Spread, cpu_of_children, spread
from kd import tracking
from kd.config.compose import PROJECT
from kd.run.folder import RunFolder
from kd.run.journal import Journal
from kd.settings import Tracking
from kd.training.loop import EpochResult

EPOCH = 30.0  # seconds of an epoch that the cost of tracking is held against
TRAIN = PROJECT / "train.py"
#: The least program of Hydra, whose --help costs what no other can save.
LEAST = "import hydra\n\n@hydra.main(config_path=None)\ndef main(cfg): ...\n\nmain()\n"
STARTS = {"help": (["--help"], 0), "error": (["schedule=nope"], 2)}  # arguments, exit code


def startup(rounds: int) -> dict[str, dict[str, Spread]]:
    """CPU seconds (user and system) of `train.py --help`, of a configuration error, and of Hydra's least program."""
    with TemporaryDirectory() as place:
        least = Path(place) / "least.py"
        least.write_text(LEAST, encoding="utf-8")
        found = {name: spread([_cpu_seconds(TRAIN, *how) for _ in range(rounds)]) for name, how in STARTS.items()}
        found["hydra alone"] = spread([_cpu_seconds(least, ["--help"], 0) for _ in range(rounds)])
    return {"startup_cpu_seconds": found}


def _cpu_seconds(program: Path, arguments: list[str], code: int) -> float:
    before = cpu_of_children()
    done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{program.name} {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return cpu_of_children() - before


def tracked(case: Case, rounds: int) -> dict[str, Any]:
    """What a run does between two epochs, as a share of an epoch of 30 s.

    The wait is what training stands still for: checkpoint, best weights (as if every epoch were the best so far), the
    line of metrics. The share adds the CPU time that the mirror's thread spends on MLflow meanwhile, in sqlite.
    """
    with TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        settings = Tracking(enabled=True, uri=None, experiment="bench", run_name=None, tags={})
        network = case.network()
        course = Journal("student", network, folder, "val/miou", {}, None)
        epochs = case.fit(case.remembered, None, "unfrozen", network)
        waits, mirrored = [], []
        with tracking.run(settings, Path(place), folder, tracking.Labels("bench", {})) as mirror:
            mirror.run_id  # noqa: B018 (waits until the store is open)
            for epoch in range(rounds + 1):
                result = _improved(next(epochs), epoch)
                begun = time.perf_counter()
                course.add(result)
                waits.append(time.perf_counter() - begun)
                begun = time.process_time()
                mirror.refresh()
                _until_idle()
                mirrored.append(time.process_time() - begun)
    shares = [(wait + cpu) / EPOCH for wait, cpu in zip(waits[1:], mirrored[1:], strict=True)]
    seconds = {"checkpoint": statistics.median(waits[1:]), "mlflow_cpu": statistics.median(mirrored[1:])}
    return {"tracking_share": spread(shares), "tracking_seconds": seconds}


def _improved(result: EpochResult, epoch: int) -> EpochResult:
    """The result as if it were better than any before."""
    return replace(result, val={"miou": epoch / 1e6})


def _until_idle(quiet: float = 0.3) -> None:
    """Wait until no thread of this process has anything to do."""
    last = time.process_time()
    while True:
        time.sleep(quiet)
        now = time.process_time()
        if now - last < quiet / 20:
            return
        last = now


def peak_memory(overrides: list[str], sizes: str, say: Callable[[str], None]) -> dict[str, float]:
    """Peak resident memory, in MiB, of a process that trains two epochs, by the way it trains (`benchmarks.memory`)."""
    found = {}
    for who in WAYS:
        command = [sys.executable, "-m", "benchmarks.memory", who, sizes, *overrides]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        found[who] = float(done.stdout.splitlines()[-1])
        say(f"{who}: {found[who]:.0f} MiB")
    return {"peak_memory_mib": found}
