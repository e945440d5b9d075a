"""The processes that train together, and what they tell each other.

Each computes on its slice of every batch, and what a whole batch has one of (a loss, a mean, a gradient) is a sum over
processes. Process 0 decides whatever can be decided (to stop, to prune, to save), and alone writes. A process alone is
`SOLO`, for whom all of this is nothing.

Plain objects and flags travel by gloo between CPUs, so that no GPU is waited for. Whoever fails says so in the store
through which the processes found each other: the others, who only see a connection that is gone, then know why.
"""

import json
import os
import signal
from collections.abc import Iterator, Sequence
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

#: How long a process waits for the others: at the start and in sums, and where process 0 may wait for another run's
#: teacher. One that has died is noticed at once, by its connection.
MEET, WORDS = timedelta(minutes=10), timedelta(days=2)
FAILED = "kd/failed"  # the store's key of the first error


class _Total(torch.autograd.Function):
    """A sum over processes; upstream gradients are summed too, as every process has a loss of its own."""

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
    """This process among the others. What is called a collective is to be called by all, in the same order."""

    words: Any = field(default=None, repr=False, compare=False)  # the gloo group of plain objects
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's part of `count` things: a contiguous one, as large as the others' or one larger."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items of a batch."""
        return items[self.rows(len(items))]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, through which gradients flow. A collective."""
        return value if self.size == 1 else _Total.apply(value)

    def broadcast(self, value: T) -> T:
        """Process 0's value, a plain object. A collective."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.words)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, a plain object, in the order of ranks. A collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.words)
        return values

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items where they are dealt out like cards."""
        return items[self.rank :: self.size]

    def collect(self, dealt: Sequence[T], count: int) -> list[T]:
        """The `count` items again, in their order, from what each process made of those dealt to it. A collective."""
        if self.size == 1:
            return list(dealt)
        found: list[T] = []
        for start in range(0, count, self.size):  # one round at a time: a split's labels are large
            mine: Any = dealt[start // self.size] if start + self.rank < count else None
            found += self.gather(mine)
        return found[:count]

    def highest(self, number: int) -> int:
        """The largest of the processes' numbers. A collective that no GPU waits for."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.words)
        return int(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. A collective that no GPU waits for."""
        return bool(self.highest(int(flag)))

    def agree(self, error: UserError | None) -> None:
        """Raise, in every process, the error that one of them has; nothing where none has. A collective."""
        if not self.any(error is not None):
            return
        said = self.gather(error and str(error))
        if error is not None:
            raise error
        rank = next(rank for rank, each in enumerate(said) if each is not None)
        raise RunError(f"process {rank}: {said[rank]}")

    def leave(self) -> None:
        """Part with the others, all together: from here on each is alone. A collective."""
        if self.size > 1 and dist.is_initialized():
            dist.barrier(group=self.words)
            dist.destroy_process_group()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Within the block, whatever ends this process is told to the others; an echo of another's error becomes it."""
        try:
            yield
        except BaseException as error:
            if not dist.is_initialized():  # alone, or they have parted: it is this process's own affair
                raise
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher's, who has seen another process end
            ends_with = self._ends_with(error)
            if ends_with is error:
                raise
            raise ends_with from error

    def _ends_with(self, error: BaseException) -> BaseException:
        """What this process should end with, which the others are told.

        That is its own error, unless it is only the echo of another's: a connection that is gone, or the signal by
        which a launcher ends the rest.
        """
        told = self._tell(error)
        if isinstance(error, UserError):
            return error
        if told["rank"] != self.rank and (told["failed"] or not isinstance(error, KeyboardInterrupt)):
            echo: UserError = RunError(f"process {told['rank']}: {told['what']}")
            echo.exit_code = told["code"]
            return echo
        if isinstance(error, RuntimeError) and _is_lost(error):
            return RunError(
                "the connection to another process of this training was lost (it was killed, or its machine is gone); "
                "go on from the last checkpoint with resume=<run folder>, with any number of processes"
            )
        return error

    def _tell(self, error: BaseException) -> dict[str, Any]:
        """Put an error where the others find it, unless one is there; returns the one that is there."""
        mine = {
            "rank": self.rank, "what": _brief(error), "code": getattr(error, "exit_code", 1),
            "failed": isinstance(error, Exception),
        }  # fmt: skip
        try:
            return json.loads(self.store.compare_set(FAILED, "", json.dumps(mine)))
        except (RuntimeError, ValueError):  # the store is gone, with the process that kept it
            return mine


SOLO = World()


@contextmanager
def joined() -> Iterator[World]:
    """Meet the other processes, for as long as the block lasts or until they `leave`; `SOLO` where there are none.

    Raises:
        RunError: the others did not come, or one of them failed; it says which, and why.
    """
    here = current_rank()
    if here.size == 1:
        yield SOLO
        return
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    cuda = torch.cuda.is_available() and here.local_rank < torch.cuda.device_count()
    if cuda:
        torch.cuda.set_device(here.local_rank)
    try:
        store, _, _ = next(rendezvous("env://", timeout=MEET))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=MEET)
        words = dist.new_group(backend="gloo", timeout=WORDS)
    except RuntimeError as error:
        raise RunError(
            f"process {here.rank} of {here.size} could not meet the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({_brief(error)}); see that all are started and can reach that address",
            page="gpus",
        ) from error
    world = World(here.rank, here.size, here.local_rank, here.local_size, words, store)
    with world.telling():
        yield world
        world.leave()


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def _brief(error: BaseException) -> str:
    said = one_line(str(error).partition("\n")[0])
    return said if isinstance(error, UserError | KeyboardInterrupt) else f"{type(error).__name__}: {said}"
