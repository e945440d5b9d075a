"""Communication between the processes that train together.

Each process computes on its slice of every batch; quantities of the whole batch (a loss, a mean, a gradient) are sums
over processes. Process 0 makes all decisions (stop, prune, save), and only it writes. A single process is `SOLO`, for
which every operation is the identity.

Plain objects and flags are sent by gloo between CPUs, so that nothing waits for a GPU. A process that fails records its
error in the rendezvous store, so that the others, which only see a lost connection, can report the cause.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from kd.errors import RunError, UserError, one_line
from kd.system.launch import Rank, current_rank

T = TypeVar("T")

#: Timeouts for the rendezvous and for sums, and for plain objects, since process 0 may be waiting for another run's
#: teacher. A dead process is noticed immediately, by its lost connection.
CONNECT_TIMEOUT, OBJECT_TIMEOUT = timedelta(minutes=10), timedelta(days=2)
FAILED = "kd/failed"  # the store's key for the first error


class _Total(torch.autograd.Function):
    """A sum over processes; gradients are summed too, since every process has its own loss."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)


@dataclass(frozen=True)
class World(Rank):
    """This process and its connection to the others. All processes must call the collectives, in the same order."""

    objects: Any = field(default=None, repr=False, compare=False)  # the gloo group for plain objects
    store: Any = field(default=None, repr=False, compare=False)
    summed: Callable[[Tensor], Tensor] = field(default=_Total.apply, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which decides and writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's contiguous part of `count` rows; parts differ in length by at most one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch's items."""
        return items[self.rows(len(items))]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; differentiable. A collective; never part of a compiled graph."""
        return value if self.size == 1 else self.summed(value)

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of all processes in rank order; gradients are summed, as in `total`. A collective.

        Processes may have different numbers of rows. Does not synchronise the GPU.
        """
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts, group=self.objects)
        first = int(counts[: self.rank].sum())
        table = rows.new_zeros(int(counts.sum()), *rows.shape[1:])  # others' rows are 0, so that a sum gathers them
        table[first : first + len(rows)] = rows
        return self.total(table)

    def broadcast(self, value: T) -> T:
        """Process 0's value, a plain object. A collective."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.objects)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, a plain object, in rank order. A collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.objects)
        return values

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items, dealt out round-robin."""
        return items[self.rank :: self.size]

    def collect(self, dealt: Sequence[T], count: int) -> list[T]:
        """All `count` results in order, from each process's results for its dealt items. A collective."""
        if self.size == 1:
            return list(dealt)
        found: list[T] = []
        for start in range(0, count, self.size):  # one round at a time, since the labels of a whole split are large
            mine: Any = dealt[start // self.size] if start + self.rank < count else None
            found += self.gather(mine)
        return found[:count]

    def highest(self, number: int) -> int:
        """The largest of the processes' numbers. A collective that does not synchronise the GPU."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.objects)
        return int(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. A collective that does not synchronise the GPU."""
        return bool(self.highest(int(flag)))

    def agree(self, error: UserError | None) -> None:
        """Raise an error of one process in all of them; do nothing without an error. A collective."""
        if not self.any(error is not None):
            return
        messages = self.gather(error and str(error))
        if error is not None:
            raise error
        rank = next(rank for rank, each in enumerate(messages) if each is not None)
        raise RunError(f"process {rank}: {messages[rank]}")

    def leave(self) -> None:
        """Disconnect from the other processes. A collective."""
        if self.size > 1 and dist.is_initialized():
            dist.barrier(group=self.objects)
            dist.destroy_process_group()

    @contextmanager
    def reporting_errors(self) -> Iterator[None]:
        """Report this process's error to the others; where it only echoes another's, raise that instead."""
        try:
            yield
        except BaseException as error:
            if not dist.is_initialized():  # a single process, or already disconnected
                raise
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from a launcher that has seen another process end
            cause = self._cause(error)
            if cause is error:
                raise
            raise cause from error

    def _cause(self, error: BaseException) -> BaseException:
        """The error to raise in this process, which is also reported to the others.

        That is its own error, unless it only echoes another's: a lost connection, or the signal by which a launcher
        stops the remaining processes.
        """
        first = self._report(error)
        if isinstance(error, UserError):
            return error
        if first["rank"] != self.rank and (first["failed"] or not isinstance(error, KeyboardInterrupt)):
            cause: UserError = RunError(f"process {first['rank']}: {first['what']}")
            cause.exit_code = first["code"]
            return cause
        if isinstance(error, RuntimeError) and _is_lost(error):
            return RunError(
                "the connection to another process of this training was lost (it was killed, or its machine is gone); "
                "resume from the last checkpoint with resume=<run folder>, with any number of processes"
            )
        return error

    def _report(self, error: BaseException) -> dict[str, Any]:
        """Record an error in the store unless one is there; returns the first error."""
        mine = {
            "rank": self.rank, "what": _brief(error), "code": getattr(error, "exit_code", 1),
            "failed": isinstance(error, Exception),
        }  # fmt: skip
        try:
            return json.loads(self.store.compare_set(FAILED, "", json.dumps(mine)))
        except (RuntimeError, ValueError):  # the process that hosted the store is gone
            return mine


SOLO = World()


@contextmanager
def joined() -> Iterator[World]:
    """Connect to the other processes until the block ends or `leave` is called; `SOLO` without others.

    Raises:
        RunError: the processes could not connect, or one of them failed; the message says which, and why.
    """
    here = current_rank()
    if here.size == 1:
        yield SOLO
        return
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    try:
        store, _, _ = next(rendezvous("env://", timeout=CONNECT_TIMEOUT))
        own_gpus = own(store, here, _gpu(here))
        if own_gpus:
            torch.cuda.set_device(here.gpu(torch.cuda.device_count()))
        backend = "cpu:gloo,cuda:nccl" if own_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=CONNECT_TIMEOUT)
        objects = dist.new_group(backend="gloo", timeout=OBJECT_TIMEOUT)
    except RuntimeError as error:
        raise RunError(
            f"process {here.rank} of {here.size} could not connect to the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({_brief(error)}); check that all are started and can reach that address",
            page="gpus",
        ) from error
    # Inductor computes other numbers where it takes several sums into one graph. As a decorator this would import the
    # compiler, a second, in every process that loads data.
    summed = torch.compiler.disable(_Total.apply)  # type: ignore[no-untyped-call]
    world = World(here.rank, here.size, here.local_rank, here.local_size, own_gpus, objects, store, summed)
    with world.reporting_errors():
        yield world
        world.leave()


def own(store: Any, here: Rank, gpu: str) -> bool:
    """Whether each process has a GPU of its own, named `gpu`, which NCCL needs. The same in all of them."""
    store.set(f"kd/gpu/{here.rank}", gpu)
    found = [store.get(f"kd/gpu/{rank}").decode() for rank in range(here.size)]
    return all(found) and len(set(found)) == here.size


def _gpu(here: Rank) -> str:
    """A name of this process's GPU that no other GPU has; empty if it has none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here.gpu(count) >= count:
        return ""
    return str(torch.cuda.get_device_properties(here.gpu(count)).uuid)


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def _brief(error: BaseException) -> str:
    message = one_line(str(error).partition("\n")[0])
    return message if isinstance(error, UserError | KeyboardInterrupt) else f"{type(error).__name__}: {message}"
