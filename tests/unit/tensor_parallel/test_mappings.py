from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch

from tests.helpers.thread_group import ThreadGroup, run_ranks
from trainer.errors import ConfigError
from trainer.tensor_parallel import mappings
from trainer.topology.groups import FakeGroup, Group, SingleGroup

Mapping = Callable[[torch.Tensor, Group], torch.Tensor]
ALL: dict[Mapping, tuple[list[str], list[str]]] = {
    mappings.complete_gradient: ([], ["all_reduce_sum"]),
    mappings.reduce_from_tensor_parallel: (["all_reduce_sum"], []),
    mappings.scatter_to_sequence: ([], ["all_gather_0"]),
    mappings.reduce_scatter_to_sequence: (["reduce_scatter_0"], ["all_gather_0"]),
}


@pytest.mark.parametrize("mapping", ALL)
def test_each_direction_calls_its_collective(mapping: Mapping) -> None:
    forward, backward = ALL[mapping]

    def body(group: Group) -> tuple[list[str], list[str]]:
        calls = cast(ThreadGroup, group).calls
        y = mapping(torch.ones(4, 2, requires_grad=True), group)
        before = list(calls)
        y.sum().backward()  # type: ignore[no-untyped-call]
        return before, calls[len(before) :]

    assert run_ranks(2, body) == [(forward, backward)] * 2


@pytest.mark.parametrize("mapping", ALL)
def test_backward_is_the_transpose_of_forward(mapping: Mapping) -> None:
    # Over all ranks together each mapping is linear: <y, A x> = <A^T y, x>, where the copies that a replicated
    # tensor has on every rank count as one.
    length = 8
    replicated_in = mapping in (
        mappings.complete_gradient,
        mappings.scatter_to_sequence,
    )
    replicated_out = mapping is mappings.reduce_from_tensor_parallel
    inputs = [torch.randn(length, 3, dtype=torch.float64) for _ in range(4)]
    if replicated_in:
        inputs = [inputs[0]] * 4
    outputs = [torch.randn(4 * length, 3, dtype=torch.float64) for _ in range(4)]

    def body(group: Group) -> tuple[float, float]:
        x = inputs[group.rank].clone().requires_grad_()
        y = mapping(x, group)
        cotangent = outputs[0 if replicated_out else group.rank][: y.shape[0]]
        y.backward(cotangent)  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return (y * cotangent).sum().item(), (x * x.grad).sum().item()

    pairs = run_ranks(4, body)
    forward = pairs[0][0] if replicated_out else sum(pair[0] for pair in pairs)
    backward = pairs[0][1] if replicated_in else sum(pair[1] for pair in pairs)
    assert forward == pytest.approx(backward, rel=1e-12)


@pytest.mark.parametrize("mapping", ALL)
def test_neither_input_nor_incoming_gradient_is_overwritten(mapping: Mapping) -> None:
    def body(group: Group) -> None:
        x = torch.full((4, 2), 1.0 + group.rank, requires_grad=True)
        kept = x.detach().clone()
        y = mapping(x, group)
        gradient = torch.randn(y.shape)
        kept_gradient = gradient.clone()
        y.backward(gradient)  # type: ignore[no-untyped-call]
        assert torch.equal(x.detach(), kept)
        assert torch.equal(gradient, kept_gradient)

    run_ranks(2, body)


@pytest.mark.parametrize("mapping", ALL)
def test_a_group_of_one_returns_its_input(mapping: Mapping) -> None:
    x = torch.ones(3, requires_grad=True)
    assert mapping(x, SingleGroup()) is x


@pytest.mark.parametrize("mapping", [mappings.scatter_to_sequence, mappings.reduce_scatter_to_sequence])
def test_an_odd_sequence_cannot_be_scattered(mapping: Mapping) -> None:
    with pytest.raises(ConfigError, match=r"sequence length \(5\) must be divisible by layout.tensor_parallel_size"):
        mapping(torch.ones(5, 1), FakeGroup(0, 2))
