"""An iterator in a process of its own, for a contestant whose program is another one.

What a process asks of its allocator or its libraries holds for all that it runs: a loop written by hand must not have
what `kd` has set up for itself.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def elsewhere(make: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Iterator[Any]]:
    """The items of `make(*arguments)`, which is called in a new process, and goes on there only while one is asked for.

    Raises:
        EOFError: at an item, where the process has ended; it has told why on stderr.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, arguments))
    process.start()
    there.close()
    try:
        yield _asked(here)
    finally:
        here.close()  # which ends it, as soon as it listens again
        process.join(timeout=60)
        process.terminate()


def _asked(connection: Connection) -> Iterator[Any]:
    while True:
        connection.send(None)
        yield connection.recv()


def _serve(connection: Connection, make: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method(None, force=True)  # loaders in here start their workers as anywhere else
    items = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(next(items))
