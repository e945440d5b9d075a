"""SIGTERM, Ctrl-C and a closed terminal: a training finishes its step and saves; anything else ends at once.

The exit code is 128 + the signal's number, which shells and schedulers read as "ended by that signal".
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """Somebody asked the process to end; a `KeyboardInterrupt`, so that nothing takes it for a failure."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.number,)  # from a worker's process to the one that waits for it


class Stop:
    """Whether somebody asked the process to end. A second signal does not wait any longer."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._patient = False

    @contextmanager
    def later(self) -> Iterator[None]:
        """Within the block a first signal is noted, for whoever is there to ask `asked` and call `now`."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @property
    def asked(self) -> bool:
        return self._number is not None

    def now(self, agree: Callable[[int], int] = lambda number: number) -> None:
        """Raises Interrupted if somebody asked for it.

        Several processes `agree` on the signal, given the number that each has heard, or 0: all of them end, or none.
        """
        if number := agree(self._number or 0):
            raise Interrupted(number)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._patient and self._number is None:
            self._number = number
            return
        raise Interrupted(number)


@contextmanager
def listen() -> Iterator[Stop]:
    """Hear signals for as long as the block lasts, in the main thread; those that are ignored (nohup) stay so."""
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop._hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
