"""Functions run by several connected processes, forked from one that has already imported torch."""

import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from program import PATIENCE, forked, forks

from kd.system.world import joined


def run(function: Callable, *args: Any, size: int = 2) -> list[Any]:
    """The results of `function(world, *args)` in each of `size` processes, in rank order."""
    results = outcomes(function, *args, size=size)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def outcomes(function: Callable, *args: Any, size: int = 2) -> list[Any]:
    """The same, with a process's exception as its result; `EOFError` if it was killed."""
    ends, processes = [], []
    for env in environments(size):
        mine, theirs = forks.Pipe(duplex=False)
        process = forked(_main, theirs, env, function, args)
        theirs.close()
        ends.append(mine)
        processes.append(process)
    results = [_received(end) for end in ends]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode is not None, "a process does not end"
    return results


def environments(size: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each of `size` processes on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _received(end: Connection) -> Any:
    try:
        return pickle.loads(end.recv_bytes()) if end.poll(PATIENCE) else TimeoutError("no result")
    except EOFError as error:
        return error


def _main(end: Connection, env: dict[str, str], function: Callable, args: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(env)
    try:
        with joined() as world:
            result = function(world, *args)
    except BaseException as error:
        result = error
    end.send_bytes(pickle.dumps(result))  # pickled here, since tensors sent directly would share this process's memory
