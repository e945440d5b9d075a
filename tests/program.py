"""`python train.py` in its own process, forked from one that has already imported the libraries.

Importing torch, smp and MLflow takes longer than most runs in these tests. A forked process can be killed and stopped
like any other; `test_bad_inputs.py` and `test_study_launchers.py` start it from a shell.
"""

import atexit
import gc
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import until

from kd.cli import main
from kd.config.compose import PROJECT

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["warm", "program"])


def forked(function: Callable, *args: Any) -> Any:
    """A process that has started to run `function(*args)`; like any of `multiprocessing`."""
    process = forks.Process(target=function, args=args)
    with pytest.MonkeyPatch.context() as patch:  # the first start imports `warm`, from this folder
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        process.start()
    return process


#: Seconds after which a test gives up waiting for a process; only a deadlock takes that long.
PATIENCE = 600


class Program:
    """A running train.py, or kd, in its own session, with the interface of `subprocess.Popen`."""

    def __init__(
        self, arguments: list[str], env: dict[str, str], cwd: Path | None, before: list[Any], entry: str = "train.py"
    ) -> None:
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 (open as long as this object)
        names = [file.name for file in self._files]
        self._process = forked(_main, entry, arguments, env, cwd or Path.cwd(), names, before)
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

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself (`stop_after`)."""

        def is_stopped() -> bool:
            assert self.poll() is None, self.communicate()
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

        until(is_stopped, "a stop of train.py", PATIENCE)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Its stdout and stderr, after it has ended; kills it and raises `TimeoutError` after `timeout` seconds."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"train.py is still running after {timeout} s")
        return tuple(Path(file.name).read_text() for file in self._files)


def begin(root: Path, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None,
          before: Sequence[Any] = ()) -> Program:  # fmt: skip
    """Start `python train.py ...` with `root` as its project root, in the environment `env` (default: inherited).

    `before` is a function and its arguments, which the process calls first.
    """
    return Program(list(arguments), {**(os.environ if env is None else env), "KD_ROOT": str(root)}, cwd, [*before])


def train(root: Path, *arguments: str, **more) -> subprocess.CompletedProcess:
    """Run `python train.py ...` to its end."""
    program = begin(root, *arguments, **more)
    out, err = program.communicate()
    return subprocess.CompletedProcess(arguments, program.returncode, out, err)


def run_kd(root: Path, *arguments: str, before: Sequence[Any] = (), env: dict[str, str] | None = None,
           patience: float = PATIENCE) -> subprocess.CompletedProcess:  # fmt: skip
    """Run `kd ...` to its end; after `patience` seconds it is killed, and TimeoutError raised."""
    env = {**(os.environ if env is None else env), "KD_ROOT": str(root)}
    program = Program(list(arguments), env, None, [*before], entry="kd")
    out, err = program.communicate(patience)
    return subprocess.CompletedProcess(arguments, program.returncode, out, err)


def stop_after(steps: int) -> None:
    """Make this process stop itself (SIGSTOP) after `steps` optimiser steps, for a test to signal or kill it there."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    left = itertools.count(steps - 1, -1)
    register_optimizer_step_post_hook(lambda *_: next(left) or os.kill(os.getpid(), signal.SIGSTOP))


def run_alone(code: str, cwd: Path) -> None:
    """Run Python code in a process that has the libraries but cannot import this project."""
    alone = f"import os, sys\nsys.modules['kd'] = sys.modules['tests'] = None\nos.chdir({str(cwd)!r})\n{code}"
    process = forked(exec, alone, {})
    process.join(PATIENCE)
    assert process.exitcode == 0, f"the code ended with {process.exitcode}"


def _main(
    entry: str, arguments: list[str], env: dict[str, str], cwd: Path, outputs: list[str], before: list[Any]
) -> None:
    """In the fork: set up and tear down the process as a shell and the interpreter would."""
    gc.freeze()  # else every collection scans all objects from before the fork
    weakref.finalize._registry.clear()  # those of the libraries, which take a tenth of a second at the end
    multiprocessing.set_start_method(None, force=True)  # this platform's: loaders would start a server like this one
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if before:
        before[0](*before[1:])
    sys.argv = [str(PROJECT / entry), *arguments]
    try:
        if entry == "kd":
            main()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
