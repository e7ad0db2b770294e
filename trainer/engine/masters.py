"""fp32 master weights and an optimizer's moments as fragments of named tensors, which a checkpoint writes and reads.

Wherever ZeRO keeps them, a `Sharding` lists them as pieces of named parameters; neither this module nor the rooms above
it know of flat buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import nn

from trainer.engine.deepspeed_engines import DrivenEngine
from trainer.engine.face import Fragment, ReadShard
from trainer.engine.sharding import Piece, Sharding
from trainer.spec.stepping import EMA, WEIGHT
from trainer.tensor_parallel.init import tensor_spec
from trainer.tensor_parallel.shard import first_element, shard_spec
from trainer.topology.groups import ParallelGroups

_VANISHED = 2.0**-30
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""The entries of DeepSpeed's dynamic loss scaler that change."""


def fragments(sharding: Sharding, groups: ParallelGroups, only_trained: bool = False) -> Iterator[Fragment]:
    """Yield the fragments that this rank has to write: over all ranks, every element once. Local; copies to CPU.

    A copy of a tied weight on a later stage is not yielded. Elements that all data-parallel ranks hold are divided
    among them. A frozen parameter has only its weight, and with `only_trained` nothing.
    """
    for piece in sharding.pieces():
        is_left_out = only_trained and not piece.parameter.requires_grad
        if getattr(piece.parameter, "ds_pipe_replicated", False) or is_left_out:
            continue
        spec = shard_spec(piece.parameter)
        if spec.dim is None and groups.tensor.rank != 0:
            continue
        first, count = _share(piece.numel, groups) if piece.is_on_every_replica else (0, piece.numel)
        if count == 0:
            continue
        for kind in sharding.kinds(piece.parameter):
            values = piece.elements(_tensor(sharding, piece, kind)).narrow(0, first, count)
            copied = values.to("cpu", torch.float32, copy=True)
            start = first_element(piece.parameter) + piece.start + first
            yield Fragment(kind, spec, groups.tensor.rank, groups.tensor.size, start, copied)


def _share(numel: int, groups: ParallelGroups) -> tuple[int, int]:
    rank, size = groups.gradients.rank, groups.gradients.size
    first = numel * rank // size
    return first, numel * (rank + 1) // size - first


def _tensor(sharding: Sharding, piece: Piece, kind: str) -> torch.Tensor:
    if kind == WEIGHT:
        return piece.master
    if kind == EMA:
        return sharding.averages[piece.master]
    # In fp16 every step so far may have been skipped: there is no state yet, and the moments are zero.
    state = sharding.basic_optimizer.state.get(piece.master, {})
    return cast(torch.Tensor, state[kind]) if kind in state else torch.zeros_like(piece.master)


def restore(engine: DrivenEngine, read: ReadShard, scalars: Mapping[str, float]) -> None:
    """Put weights, moments and counters of a checkpoint into a newly built engine. Local.

    Args:
        engine: DeepSpeed's engine.
        read: see `ReadShard`; called for each parameter that this rank holds. For a frozen one only the weight is read.
        scalars: the values that `scalars` returned when the checkpoint was saved.
    """
    sharding, optimizer = engine.sharding, engine.basic_optimizer
    for piece in sharding.wrapped_pieces():
        # Also of a frozen parameter that DeepSpeed was given for want of others: its optimizer steps it, by nothing.
        moments = sharding.stepping.group(tensor_spec(piece.parameter)).moments
        _begin_state(optimizer, piece.master, moments, int(scalars["optimizer_step"]))
    if isinstance(optimizer, DeepSpeedCPUAdam):
        _replay_steps(optimizer, int(scalars["optimizer_step"]))
    by_parameter: dict[nn.Parameter, list[Piece]] = {}
    for piece in sharding.pieces():
        by_parameter.setdefault(piece.parameter, []).append(piece)
    for parameter in engine.module.parameters():
        spec = shard_spec(parameter)
        own = by_parameter.get(parameter, [])
        weight = _of(parameter, read(WEIGHT, spec))
        for piece in own:
            piece.elements(piece.master).copy_(weight.narrow(0, piece.start, piece.numel))
        sharding.set_model_weight(parameter, weight)
        for kind in sharding.kinds(parameter)[1:] if own else ():
            moment = _of(parameter, read(kind, spec))
            for piece in own:
                piece.elements(_tensor(sharding, piece, kind)).copy_(moment.narrow(0, piece.start, piece.numel))
    _set_scalars(engine, scalars)


def _of(parameter: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
    """Return a parameter's elements of the rank's shard of its tensor, flattened."""
    numel: int = getattr(parameter, "ds_numel", parameter.numel())
    return shard.view(-1).narrow(0, first_element(parameter), numel)


def _begin_state(optimizer: Any, master: torch.Tensor, moments: tuple[str, ...], step: int) -> None:
    state = optimizer.state[master]
    for kind in moments:
        if kind not in state:
            state[kind] = torch.zeros_like(master, memory_format=torch.preserve_format)
    if isinstance(optimizer, DeepSpeedCPUAdam):
        state["step"] = step
    else:
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=master.device if fused else "cpu")


def _replay_steps(optimizer: Any, step: int) -> None:
    """Bring DeepSpeed's CPU kernel to `step`.

    The kernel multiplies up beta^step in fp32 over the steps that it sees, but computes a power if it begins in the
    middle: the two differ in the last bits, and so would every weight.
    """
    group = optimizer.param_groups[0]
    # From here on 1 - beta^step rounds to 1 either way.
    if max(group["betas"]) ** step < _VANISHED:
        return
    rest = [torch.zeros(1) for _ in range(4)]
    numbers = (group["lr"], *group["betas"], group["eps"], 0.0, group["bias_correction"])
    for number in range(1, step + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, number, *numbers, *rest)


def scalars(engine: DrivenEngine) -> dict[str, float]:
    """Return the state besides tensors that must be restored: counters and the dynamic loss scale. Local; may sync."""
    steps = [state["step"] for state in engine.basic_optimizer.state.values() if "step" in state]
    # A stage whose parameters are all frozen has stepped nothing, but reports the same numbers as the others.
    taken = steps[0] if steps else engine.global_steps - engine.skipped_steps
    found = {
        "optimizer_step": float(taken),
        "skipped_steps": float(engine.skipped_steps),
        "global_steps": float(engine.global_steps),
    }
    if engine.fp16_enabled():
        scaler = engine.optimizer.loss_scaler
        found |= {name: float(getattr(scaler, name)) for name in _SCALER}
    return found


def _set_scalars(engine: DrivenEngine, values: Mapping[str, float]) -> None:
    engine.skipped_steps = int(values["skipped_steps"])
    engine.global_steps = int(values["global_steps"])
    # A checkpoint of another precision has no loss scale; this run's initial one is used.
    if engine.fp16_enabled() and _SCALER[0] in values:
        scaler = engine.optimizer.loss_scaler
        for name in _SCALER:
            number: Callable[[float], float | int] = float if name == "cur_scale" else int
            setattr(scaler, name, number(values[name]))
