from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import torch.distributed as dist

from tests.helpers.dist import run_distributed
from trainer.errors import ConfigError, StorageError, TridentError
from trainer.topology.agreement import gather, together
from trainer.topology.dist_group import DistGroup

pytestmark = pytest.mark.dist
TIMEOUT_S = 60
Failures = dict[int, Callable[[], Exception]]


def agree(rank: int, world_size: int, failures: Failures) -> tuple[object, ...]:
    """Return (kind, text, problems, hints, exit code, cause) of what this rank raised, or its result."""
    handle = dist.group.WORLD
    assert handle is not None
    control = DistGroup(rank, world_size, handle, tuple(range(world_size)))

    def action() -> int:
        if rank in failures:
            try:
                raise OSError("underneath")
            except OSError as cause:
                raise failures[rank]() from cause
        return rank * 10

    outcome: tuple[object, ...]
    try:
        outcome = ("ok", together(control, action))
    except TridentError as error:
        cause = type(error.__cause__).__name__
        outcome = (type(error).__name__, str(error), error.problems, error.hints, error.exit_code, cause)
    except Exception as error:
        outcome = (type(error).__name__, str(error), type(error.__cause__).__name__)
    # Nobody is left in a collective: the next one works.
    assert together(control, lambda: "next") == "next"
    return outcome


def boom() -> Exception:
    return ZeroDivisionError("boom")


def config_error() -> Exception:
    return ConfigError(["first", "second"], hints=["do this"])


def storage_error() -> Exception:
    return StorageError("disk full")


def test_each_rank_gets_its_own_result() -> None:
    assert run_distributed(agree, 3, {}, timeout_s=TIMEOUT_S) == [("ok", 0), ("ok", 10), ("ok", 20)]


def test_a_typed_error_of_one_rank_reaches_all_with_everything_it_says() -> None:
    outcomes = run_distributed(agree, 3, {1: config_error}, timeout_s=TIMEOUT_S)
    said = ("ConfigError", "first\nsecond", ("first", "second"), ("do this",), 2)
    assert [outcome[:5] for outcome in outcomes] == [said] * 3
    assert outcomes[1][5] == "OSError", "the rank where it happened keeps the cause"


def test_another_error_is_itself_where_it_happened_and_named_by_rank_elsewhere() -> None:
    outcomes = run_distributed(agree, 3, {2: boom}, timeout_s=TIMEOUT_S)
    assert outcomes[2] == ("ZeroDivisionError", "boom", "OSError")
    for outcome in outcomes[:2]:
        assert outcome[:2] == ("TridentError", "rank 2 failed: ZeroDivisionError: boom")


def test_the_lowest_failing_rank_is_the_one_that_speaks() -> None:
    outcomes = run_distributed(agree, 3, {1: storage_error, 2: config_error}, timeout_s=TIMEOUT_S)
    assert [outcome[:2] for outcome in outcomes] == [("StorageError", "disk full")] * 3


def test_an_unknown_error_keeps_its_traceback_although_a_lower_rank_failed_too() -> None:
    outcomes = run_distributed(agree, 2, {0: storage_error, 1: boom}, timeout_s=TIMEOUT_S)
    assert outcomes[0][0] == "StorageError"
    assert outcomes[1] == ("ZeroDivisionError", "boom", "OSError")


def collect(rank: int, world_size: int) -> list[object]:
    handle = dist.group.WORLD
    assert handle is not None
    control = DistGroup(rank, world_size, handle, tuple(range(world_size)))
    return gather(control, None if rank == 1 else {"rank": rank, "name": "x" * rank})


def test_every_rank_sees_the_values_of_all_in_the_order_of_ranks() -> None:
    outcomes = run_distributed(collect, 3, timeout_s=TIMEOUT_S)
    assert outcomes == [[{"rank": 0, "name": ""}, None, {"rank": 2, "name": "xx"}]] * 3


def place_of_error(rank: int, world_size: int, wrong: int) -> tuple[str, tuple[str, ...]]:
    handle = dist.group.WORLD
    assert handle is not None
    control = DistGroup(rank, world_size, handle, tuple(range(world_size)))

    def act() -> None:
        if rank >= wrong:
            raise ConfigError(["a is wrong", "b is wrong"], hints=["see c"])

    with pytest.raises(ConfigError) as caught:
        together(control, act, is_of_machine=True)
    return str(caught.value), caught.value.hints


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_of_a_machine_says_which_unless_it_is_of_all(wrong: int) -> None:
    host = socket.gethostname()
    told = "a is wrong\nb is wrong" if wrong == 0 else f"rank 1 ({host}): a is wrong\nrank 1 ({host}): b is wrong"
    assert run_distributed(place_of_error, 3, wrong, timeout_s=TIMEOUT_S) == [(told, ("see c",))] * 3
