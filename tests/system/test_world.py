"""Communication between processes, and how a failure of one reaches the others."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import pytest
import together
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from kd.errors import DataError, RunError
from kd.system import world
from kd.system.launch import Rank
from kd.system.world import SOLO, World, joined

SIZES = st.integers(1, 9)


def worlds(size):
    return [World(rank, size) for rank in range(size)]


# shares


@given(st.lists(st.integers(), max_size=50), SIZES)
def test_the_shares_of_a_batch_add_up_to_the_batch(items, size):
    assert list(chain.from_iterable(world.share(items) for world in worlds(size))) == items


@given(st.integers(0, 100), SIZES)
def test_shares_differ_in_length_by_at_most_one(count, size):
    lengths = {len(world.share(range(count))) for world in worlds(size)}
    assert max(lengths) - min(lengths) <= 1


@given(st.lists(st.integers(), max_size=50), SIZES)
def test_items_are_dealt_round_robin(items, size):
    hands = [list(world.deal(items)) for world in worlds(size)]
    assert [hands[i % size][i // size] for i in range(len(items))] == items
    assert sum(map(len, hands)) == len(items)


# one process


def test_for_a_single_process_every_operation_is_the_identity():
    value = torch.ones(2, requires_grad=True)
    assert SOLO.is_main
    assert SOLO.total(value) is value
    assert SOLO.broadcast("plan") == "plan"
    assert SOLO.gather(3) == [3]
    assert SOLO.collect([1, 2], 2) == [1, 2]
    assert SOLO.highest(7) == 7
    assert (SOLO.any(True), SOLO.any(False)) == (True, False)
    SOLO.leave()


def test_a_single_process_connects_to_nobody():
    with joined() as world:
        assert world is SOLO


def test_an_error_of_a_single_process_is_unchanged():
    error = RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError) as raised, joined():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("gpus", "own"), [(["a", "b"], True), (["a", "a"], False), (["a", ""], False), (["", ""], False)]
)
def test_gpus_are_used_by_all_processes_or_by_none(gpus, own):
    store = HashStore()
    with ThreadPoolExecutor(len(gpus)) as pool:
        ranks = [Rank(rank, len(gpus), rank, len(gpus)) for rank in range(len(gpus))]
        assert list(pool.map(partial(world.own, store), ranks, gpus)) == [own] * len(gpus)


# several processes


def talk(world):
    value = torch.tensor([1.0 + world.rank, 2.0], requires_grad=True)
    total = world.total(value)
    ((world.rank + 1) * total.square()).sum().backward()
    hand = [f"batch {i}" for i in world.deal(range(7))]
    return {
        "total": total.tolist(),
        "gradient": value.grad.tolist(),
        "broadcast": world.broadcast({"rank": world.rank}),
        "gather": world.gather(world.rank),
        "collect": world.collect(hand, 7),
        "highest": world.highest(-world.rank),
        "any": (world.any(world.rank == 1), world.any(False)),
    }


@pytest.fixture(scope="module")
def results():
    return together.run(talk, size=3)


def test_all_processes_get_the_same_results(results):
    assert results[0] == results[1] == results[2]


def test_a_total_is_the_sum_over_processes(results):
    assert results[0]["total"] == [1 + 2 + 3, 2 + 2 + 2]


def test_the_gradient_of_a_total_is_the_sum_of_all_processes_gradients(results):
    """d/dv of (1 + 2 + 3) (sum of v)^2."""
    assert results[0]["gradient"] == [6 * 2 * 6, 6 * 2 * 6]


def test_broadcast_returns_the_value_of_process_0(results):
    assert results[0]["broadcast"] == {"rank": 0}


def test_gathered_values_are_in_rank_order(results):
    assert results[0]["gather"] == [0, 1, 2]
    assert results[0]["collect"] == [f"batch {i}" for i in range(7)]


def test_a_flag_of_one_process_is_seen_by_all(results):
    assert results[0]["any"] == (True, False)
    assert results[0]["highest"] == 0


# failures


def fail(world, rank, how):
    if world.rank == rank:
        if how == "user":
            raise DataError("images/a.png cannot be read")
        if how == "defect":
            raise KeyError("x")
        os.kill(os.getpid(), signal.SIGKILL)
    world.gather(1)
    world.gather(2)


def disagree(world, rank):
    world.agree(None)
    world.agree(DataError("images/a.png cannot be read") if world.rank == rank else None)


@pytest.mark.parametrize(("who", "rank"), [(disagree, 0), (disagree, 1), (partial(fail, how="user"), 1)])
def test_a_user_error_in_one_process_ends_all_with_its_message(who, rank):
    ended = together.outcomes(who, rank)
    assert str(ended[rank]) == "images/a.png cannot be read"
    assert isinstance(ended[rank], DataError)
    assert str(ended[1 - rank]) == f"process {rank}: images/a.png cannot be read"
    assert isinstance(ended[1 - rank], RunError)


def test_a_bug_in_one_process_is_named_by_the_others():
    ended = together.outcomes(fail, 1, "defect")
    assert isinstance(ended[1], KeyError)
    assert str(ended[0]) == "process 1: KeyError: 'x'"


def test_a_killed_process_is_noticed_at_once():
    ended = together.outcomes(fail, 1, "kill")
    assert isinstance(ended[1], EOFError)
    assert isinstance(ended[0], RunError)
    assert "was lost" in str(ended[0])


def part(world):
    world.leave()
    if world.is_main:
        raise RuntimeError("Connection closed by peer")
    return "gone"


def test_after_leaving_an_error_is_unchanged():
    ended = together.outcomes(part)
    assert isinstance(ended[0], RuntimeError)
    assert str(ended[0]) == "Connection closed by peer"
    assert ended[1] == "gone"
