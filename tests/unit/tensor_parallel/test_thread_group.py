from __future__ import annotations

import threading

import pytest
import torch

from tests.helpers.thread_group import run_ranks
from trainer.tensor_parallel.mappings import reduce_from_tensor_parallel
from trainer.topology.groups import Group


def test_collectives() -> None:
    def body(group: Group) -> tuple[float, float, list[float], list[float]]:
        mine = torch.arange(4.0) + 10 * group.rank
        summed = group.all_reduce(mine.clone())[0].item()
        largest = group.all_reduce(mine.clone(), op="max")[0].item()
        return summed, largest, group.all_gather(mine[:1]).tolist(), group.reduce_scatter(mine).tolist()

    assert run_ranks(2, body) == [(10, 10, [0, 10], [10, 12]), (10, 10, [0, 10], [14, 16])]


def test_all_reduce_is_in_place() -> None:
    def body(group: Group) -> float:
        mine = torch.ones(1)
        group.all_reduce(mine)
        return mine.item()

    assert run_ranks(4, body) == [4.0] * 4


def test_cpu_backward_runs_in_the_thread_of_its_rank() -> None:
    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *grads: torch.Tensor) -> torch.Tensor:
            seen.append((threading.get_ident(), int(grads[0].item())))
            return grads[0]

    seen: list[tuple[int, int]] = []
    expected: list[tuple[int, int]] = []

    def body(group: Group) -> None:
        expected.append((threading.get_ident(), group.rank))
        x = torch.ones(1, requires_grad=True)
        y = reduce_from_tensor_parallel(Probe.apply(x) * group.rank, group)  # type: ignore[no-untyped-call]
        y.backward()  # type: ignore[no-untyped-call]

    run_ranks(2, body)
    assert sorted(seen) == sorted(expected)


def test_the_failing_rank_is_the_one_reported() -> None:
    def body(group: Group) -> None:
        if group.rank == 1:
            raise ZeroDivisionError("rank 1")
        group.all_reduce(torch.ones(1))

    with pytest.raises(ZeroDivisionError, match="rank 1"):
        run_ranks(2, body)


def test_a_missing_peer_is_an_error_and_not_a_hang() -> None:
    def body(group: Group) -> None:
        if group.rank == 0:
            group.all_reduce(torch.ones(1))

    with pytest.raises(threading.BrokenBarrierError):
        run_ranks(2, body, timeout_s=0.2)


def test_mismatched_collectives_are_an_error() -> None:
    def body(group: Group) -> None:
        if group.rank == 0:
            group.all_reduce(torch.ones(2))
        else:
            group.all_gather(torch.ones(2))

    with pytest.raises(RuntimeError, match="same collective"):
        run_ranks(2, body)
