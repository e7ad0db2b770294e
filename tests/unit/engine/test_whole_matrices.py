"""Matrices that ranks hold in parts are changed whole: the ranks are threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers.thread_group import run_ranks
from trainer.engine.orthogonal import muon_update, orthogonalised
from trainer.engine.whole_matrices import Matrix, Run, WholeMatrices, matrix_of, runs_of
from trainer.spec.execution import Execution
from trainer.spec.tensors import Cut, Init, TensorSpec
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.shard import ShardSpec, shard, unshard
from trainer.topology.groups import FakeGroup, Group, single_process_groups

QKV = ShardSpec("qkv", (12, 6), 0, (8, 2, 2))
OUTPUT = ShardSpec("output", (6, 8), 1, (8,))
SECTIONS = {"qkv": (8, 2, 2), "output": (6,)}


def parameters_of(tensor: TensorSpec, rank: int, size: int) -> list[nn.Parameter]:
    context = TensorContext(FakeGroup(rank, size), False, Execution(seq_length=4))
    return list(context.parameters([tensor]).values())


def wholes() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return {spec.name: torch.randn(spec.global_shape, generator=made) for spec in (QKV, OUTPUT)}


def expected() -> dict[str, torch.Tensor]:
    return {name: muon_update(whole, SECTIONS[name]) for name, whole in wholes().items()}


def test_singular_values_come_near_one() -> None:
    made = torch.Generator().manual_seed(2)
    for shape in ((5, 9), (9, 5), (7, 7)):
        found = orthogonalised(torch.randn(shape, generator=made))
        assert found.shape == shape
        values = torch.linalg.svdvals(found)
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_sections_are_matrices_of_their_own() -> None:
    whole = wholes()["qkv"]
    parts = [muon_update(part, [len(part)]) for part in torch.split(whole, [8, 2, 2])]
    assert torch.equal(muon_update(whole, SECTIONS["qkv"]), torch.cat(parts))
    assert not torch.allclose(muon_update(whole, [12]), torch.cat(parts))


def test_shards_of_tensor_parallel_ranks_are_changed_as_the_whole_is() -> None:
    def body(group: Group) -> list[torch.Tensor]:
        matrices = [
            Matrix(spec, SECTIONS[spec.name], ((0, spec.global_shape[0] * spec.global_shape[1] // 2),))
            for spec in (QKV, OUTPUT)
        ]
        groups = replace(single_process_groups(), tensor=group)
        held = [shard(wholes()[spec.name], spec, group.rank, 2).view(-1) for spec in (QKV, OUTPUT)]
        return WholeMatrices(matrices, groups).change(held, muon_update)

    ranks = run_ranks(2, body)
    for index, spec in enumerate((QKV, OUTPUT)):
        whole = unshard([rank[index].view(spec.local_shape(2)) for rank in ranks], spec)
        assert torch.allclose(whole, expected()[spec.name], atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_runs_of_replicas_are_changed_as_the_whole_is(size: int) -> None:
    """As ZeRO-1 cuts a flat tensor: borders inside matrices, and a replica without a run of some."""
    flat = torch.cat([whole.view(-1) for whole in wholes().values()])
    width = -(-flat.numel() // size)

    def own_runs(rank: int) -> list[Run | None]:
        found: list[Run | None] = []
        first = 0
        for whole in wholes().values():
            start, end = max(rank * width, first), min((rank + 1) * width, first + whole.numel())
            found.append((start - first, end - start) if end > start else None)
            first += whole.numel()
        return found

    def body(group: Group) -> list[torch.Tensor]:
        own = own_runs(group.rank)
        runs = runs_of(own, group)
        matrices = [Matrix(spec, SECTIONS[spec.name], of) for spec, of in zip((QKV, OUTPUT), runs, strict=True)]
        assert [matrix.owner(0) for matrix in matrices] == [0, size - 1]
        held = [whole.view(-1).narrow(0, *(run or (0, 0))) for whole, run in zip(wholes().values(), own, strict=True)]
        return WholeMatrices(matrices, replace(single_process_groups(), gradients=group)).change(held, muon_update)

    ranks = run_ranks(size, body)
    for index, whole in enumerate(expected().values()):
        assert torch.allclose(torch.cat([rank[index] for rank in ranks]).view(whole.shape), whole, atol=1e-6)


def test_even_runs_are_put_together_by_turns() -> None:
    even = Matrix(OUTPUT, (6,), ((0, 24), (24, 24)))
    assert [even.owner(turn) for turn in range(4)] == [0, 1, 0, 1]


def test_rows_that_all_ranks_hold_are_matrices_of_their_own() -> None:
    tensor = TensorSpec("blocks.0.attention.qkv.weight", (12, 6), Init.normal, Cut(0, (8, 2, 2), heads=(4, 1, 1)))
    queries, shared = parameters_of(tensor, 1, 2)
    runs: Sequence[Run] = ((0, 24),)
    of_queries, of_shared = matrix_of(queries, runs), matrix_of(shared, runs)
    assert (of_queries.spec.global_shape, of_queries.spec.dim, of_queries.sections) == ((8, 6), 0, (8,))
    assert (of_shared.spec.global_shape, of_shared.spec.dim, of_shared.sections) == ((4, 6), None, (2, 2))
    (whole,) = parameters_of(tensor, 0, 1)
    assert matrix_of(whole, runs).sections == (8, 2, 2)
    (by_inputs,) = parameters_of(replace(tensor, cut=Cut(1, (6,))), 0, 2)
    assert matrix_of(by_inputs, runs).sections == (12,)
