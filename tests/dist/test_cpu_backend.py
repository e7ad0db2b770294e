"""DeepSpeed's collectives by messages give what gloo gives, in place and begun early, for groups of every size."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.dist import run_distributed

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

LARGE = 3 << 14


def compare(rank: int, world_size: int) -> list[str]:
    """Return the names of the collectives whose result is not gloo's."""
    from datetime import timedelta

    import deepspeed.comm as ds

    from trainer.engine.cpu_backend import MessageBackend, speak_by_messages

    speak_by_messages(timedelta(seconds=60))
    ds.init_distributed(dist_backend="gloo", verbose=False)
    assert isinstance(ds.comm.cdb, MessageBackend)
    wrong = []

    def expect(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        if not torch.equal(found, expected):
            wrong.append(name)

    for count in (5, LARGE):
        values = torch.arange(count * world_size, dtype=torch.float32) % 97
        whole = torch.stack([values + other for other in range(world_size)]).sum(0)
        mine = values[:count] + rank
        gathered = torch.cat([values[:count] + other for other in range(world_size)])

        out = torch.empty(count * world_size)
        ds.all_gather_into_tensor(out, mine)
        expect(f"all-gather of {count}", out, gathered)
        flat = torch.zeros(count * world_size)
        part = flat.chunk(world_size)[rank].copy_(mine)
        handle = ds.all_gather_into_tensor(flat, part, async_op=True)
        handle.wait()
        handle.wait()
        expect(f"all-gather of {count} in place, begun early", flat, gathered)

        scattered = torch.empty(count)
        ds.reduce_scatter_tensor(scattered, values + rank)
        expect(f"reduce-scatter of {count}", scattered, whole.chunk(world_size)[rank])
        summed = values + rank
        ds.all_reduce(summed)
        expect(f"sum of {count}", summed, whole)
        highest = values + rank
        ds.all_reduce(highest, op=ds.ReduceOp.MAX)
        expect(f"maximum of {count}", highest, values + world_size - 1)
    return wrong


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_same_results_as_gloo(world_size: int) -> None:
    assert run_distributed(compare, world_size, timeout_s=90) == [[]] * world_size


def sum_uneven_parts(rank: int, world_size: int) -> bool:
    """Return whether a scatter of parts of other sizes, one of them empty, gives this rank the sum of its own."""
    from trainer.topology.exchange import Peers

    group = torch.distributed.group.WORLD
    assert group is not None
    # Rank 1 gets nothing.
    sizes = [0 if index == 1 else 5 + index for index in range(world_size)]
    parts = [torch.arange(size, dtype=torch.float32) + rank for size in sizes]
    found = Peers(group, rank, tuple(range(world_size))).start_reduce_scatter(parts)()
    expected = world_size * torch.arange(sizes[rank]) + sum(range(world_size))
    return torch.equal(found, expected.float())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_may_get_different_amounts_of_a_sum(world_size: int) -> None:
    assert run_distributed(sum_uneven_parts, world_size, timeout_s=60) == [True] * world_size
