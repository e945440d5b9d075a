"""SIGTERM, Ctrl-C and a closed terminal: training finishes its step and saves; everything else stops at once.

The exit code is 128 + the signal's number, which shells and schedulers read as "terminated by that signal".
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
