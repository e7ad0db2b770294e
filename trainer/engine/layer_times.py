"""Measured time of each layer on this machine, forward and backward, by which a pipeline is best partitioned.

Counted work (`pipeline.partition`) knows only matrix multiplications. The real cost of memory-bound kernels, of the
loss over a large vocabulary and of small micro-batches depends on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from trainer.config.plan import RunPlan
from trainer.engine.layer_kernels import choose_kernels
from trainer.engine.world import rank_threads
from trainer.kernels.attention_backend import DTYPES
from trainer.micro_batch import MicroBatch, Place
from trainer.model.gpt import ModelContext, build_layer
from trainer.spec.model import Layer, LayerKind
from trainer.spec.parts import Head
from trainer.tensor_parallel.init import Drawn, fill
from trainer.topology.groups import FakeGroup, SingleGroup

_WARM_UP = 3
_FEWEST, _MOST = 5, 50
_ENOUGH_S = 1.0
"""Seconds of timed passes of one layer that suffice, once there are `_FEWEST` passes."""


@dataclass(frozen=True)
class LayerTime:
    """Medians over passes of one micro-batch, in seconds."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Sum of forward and backward."""
        return self.forward + self.backward


def measure_layers(plan: RunPlan, device: torch.device) -> dict[str, LayerTime]:
    """Time one rank's share of every layer of the model; among layers that are alike, only one is measured.

    One process without peers: communication between tensor-parallel ranks is not included.
    Sets the process's number of threads to that of a rank.

    Args:
        plan: numbers of the run.
        device: device to compute on.
    """
    torch.set_num_threads(rank_threads(plan.config.runtime.threads_per_rank, plan.world_size))
    size = plan.tensor_parallel_size
    context = ModelContext(
        tensor=SingleGroup() if size == 1 else FakeGroup(0, size),
        sequence_parallel=plan.sequence_parallel,
        execution=plan.execution,
        spec=plan.model,
    )
    found: dict[str, LayerTime] = {}
    alike: dict[object, LayerTime] = {}
    for layer in plan.model.layers:
        if layer.spec not in alike:
            alike[layer.spec] = _measure(layer, plan, context, device)
        found[layer.name] = alike[layer.spec]
    return found


def _measure(which: Layer, plan: RunPlan, context: ModelContext, device: torch.device) -> LayerTime:
    is_tied_head = isinstance(which.spec, Head) and which.spec.tied
    dtype = DTYPES[plan.dtype]
    layer = build_layer("embedding" if is_tied_head else which.name, context)
    fill(layer, Drawn(plan.seed, context.tensor), device, dtype)
    choose_kernels(layer, plan, device)
    ids = torch.randint(0, plan.model.vocab_size, _ids_shape(plan), device=device)
    batch = MicroBatch.of(ids, labels=ids, place=Place(plan.seed, step=1, first_sample=0))
    if which.kind is LayerKind.embedding:
        return _timed(lambda hidden: layer(ids, batch), None, device)
    hidden = torch.randn(_hidden_shape(plan), dtype=dtype, device=device)
    run = partial(layer, as_head=True) if is_tied_head else layer
    return _timed(lambda hidden: run(hidden, batch), hidden.requires_grad_(), device)


def _ids_shape(plan: RunPlan) -> tuple[int, int]:
    return plan.micro_batch_size, plan.execution.seq_length


def _hidden_shape(plan: RunPlan) -> tuple[int, int, int]:
    """Return the shape of the tensor between layers, `[S, B, H]`, or `[S/tp, B, H]` with sequence parallelism."""
    shards = plan.sequence_shards
    return plan.execution.seq_length // shards, plan.micro_batch_size, plan.model.hidden_size


def _timed(run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor | None, device: torch.device) -> LayerTime:
    """Time `run(hidden)` and its backward; None stands for an input without gradient."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    given = torch.empty(0) if hidden is None else hidden
    forward: list[float] = []
    backward: list[float] = []
    for number in range(_WARM_UP + _MOST):
        given.grad = None
        wait()
        started = time.perf_counter()
        out = run(given)
        wait()
        between = time.perf_counter()
        if out.requires_grad:
            out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
        wait()
        ended = time.perf_counter()
        if number >= _WARM_UP:
            forward.append(between - started)
            backward.append(ended - between)
        if len(forward) >= _FEWEST and sum(forward) + sum(backward) > _ENOUGH_S:
            break
    return LayerTime(median(forward), median(backward))
