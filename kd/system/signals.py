"""SIGTERM, Ctrl-C, a closed terminal, a scheduler's USR1: training saves after its step; all else stops at once.

The exit code is 128 + the signal's number, which shells and schedulers read as "terminated by that signal".

Slurm, systemd and terminals signal every process of a job. Worker processes leave that to the main process, which
finishes its step and may need another batch for it. They stay in its process group, which Ctrl-Z and kill -9 are for.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: What a scheduler is asked to send before a time limit (sbatch --signal), and submitit's signal to requeue.
WARNINGS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
JOBS = [*SIGNALS, *WARNINGS]  # workers leave them to the main process


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop; a `KeyboardInterrupt`, so that it is not treated as a failure."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.number,)  # pickled from a worker process to its parent


class Stop:
    """Whether the process was asked to stop; a second signal always interrupts at once."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._deferred = False

    @contextmanager
    def later(self) -> Iterator[None]:
        """Within the block a first signal is only recorded; the caller polls `asked` or calls `now`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @property
    def asked(self) -> bool:
        return self._number is not None

    def now(self, agree: Callable[[int], int] = lambda number: number) -> None:
        """Raise Interrupted if a signal was recorded.

        With several processes, `agree` maps the number that each has received, or 0, to one for all, so that either
        all of them stop or none.
        """
        if number := agree(self._number or 0):
            raise Interrupted(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._deferred and self._number is None:
            self._number = number
            return
        raise Interrupted(number)


@contextmanager
def listen() -> Iterator[Stop]:
    """Handle signals within the block, in the main thread; signals that are ignored (nohup) stay ignored."""
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop._handle)
        for number in WARNINGS:
            if signal.getsignal(number) is signal.SIG_DFL:  # it would kill; submitit has handlers of its own
                before[number] = signal.signal(number, stop._handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def blocked() -> Iterator[None]:
    """Start worker processes within the block: a job's signals are blocked in them from their first instruction on.

    This process gets the signals that arrive meanwhile at the end of the block.
    """
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        before = signal.pthread_sigmask(signal.SIG_BLOCK, JOBS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        yield


def leave_to_main_process() -> None:
    """In a worker: no signal to the whole job has an effect; a SIGTERM from the main process still ends it."""
    if not hasattr(signal, "sigwaitinfo"):  # Windows, macOS
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(os, "setpgid"):
            os.setpgid(0, 0)
        return
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, JOBS)
    threading.Thread(target=_end_with_main_process, name="signals", daemon=True).start()


def _end_with_main_process() -> None:
    main = multiprocessing.parent_process()
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != (main.pid if main else os.getppid()):
        pass
    os._exit(0)
