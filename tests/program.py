"""`python train.py` as a process of its own, forked from one that has imported the libraries already.

Importing torch, smp and MLflow takes longer than most runs of these tests. What is forked has a pid, is killed and
stopped like any process, and imports all of `kd` itself; `test_mistakes.py` and `test_study_launchers.py` start it from
a shell's point of view, from nothing.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.config.compose import PROJECT

LIBRARIES = [
    "torch", "torchvision", "segmentation_models_pytorch", "albumentations", "mlflow", "sqlalchemy", "alembic",
    "matplotlib.pyplot", "optuna", "optuna.visualization.matplotlib", "hydra.main", "rich.progress",
]  # fmt: skip
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(LIBRARIES)


class Program:
    """A running train.py, with the face of a `subprocess.Popen` in a session of its own."""

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: Path | None, before: list[Any]) -> None:
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 (they live as long as this)
        names = [file.name for file in self._files]
        self._process = forks.Process(target=_main, args=(arguments, env, cwd or Path.cwd(), names, before))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def said(self) -> str:
        """What it wrote to its stdout so far."""
        return Path(self._files[0].name).read_text()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, once it has ended; it is killed, and `TimeoutError` raised, if it does not in `timeout` s."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"train.py is still running after {timeout} s")
        return tuple(Path(file.name).read_text() for file in self._files)


def begin(root: Path, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None,
          before: Sequence[Any] = ()) -> Program:  # fmt: skip
    """Start `python train.py ...` with `root` as its project root, in the environment `env` (this one's own).

    `before` is a function, and its arguments, that the process calls first.
    """
    return Program(list(arguments), {**(os.environ if env is None else env), "KD_ROOT": str(root)}, cwd, [*before])


def train(root: Path, *arguments: str, **more) -> subprocess.CompletedProcess:
    """Run `python train.py ...` to its end."""
    program = begin(root, *arguments, **more)
    out, err = program.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, program.returncode, out, err)


def run_alone(code: str, cwd: Path) -> None:
    """Run Python code to its end, in a process that has the libraries and can import nothing of this project."""
    alone = f"import os, sys\nsys.modules['kd'] = sys.modules['tests'] = None\nos.chdir({str(cwd)!r})\n{code}"
    process = forks.Process(target=exec, args=(alone, {}))
    process.start()
    process.join(120)
    assert process.exitcode == 0, f"the code ended with {process.exitcode}"


def _main(arguments: list[str], env: dict[str, str], cwd: Path, outputs: list[str], before: list[Any]) -> None:
    """In the fork: what a shell and the interpreter do before and after a script."""
    gc.freeze()  # else each collection goes through all that was imported before the fork
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if before:
        before[0](*before[1:])
    script = str(PROJECT / "train.py")
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
