"""fp32 master weights and AdamW's moments, wherever ZeRO put them, as fragments of named tensors.

DeepSpeed keeps them in four ways: on the parameters (ZeRO-0), in one flat partition a parameter group (ZeRO-1 and 2,
and its bf16 optimizer), and in flat sub-groups of parameter partitions (ZeRO-3). Here each way becomes the same list
of pieces; the rest of the project knows nothing of flat buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from trainer.engine.face import Fragment, ReadShard
from trainer.tensor_parallel.shard import shard_spec
from trainer.topology.groups import ParallelGroups

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weight", *MOMENTS)
_VANISHED = 2.0**-30
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What moves in DeepSpeed's dynamic loss scaler."""


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one parameter's tensor-parallel shard, as this rank's optimizer steps them."""

    parameter: nn.Parameter
    start: int
    """In the flattened shard."""
    numel: int
    master: torch.Tensor
    """The tensor that the inner optimizer steps, and files its state under."""
    offset: int
    """Of the piece in the flattened master."""

    def elements(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the piece's elements, a view, of the master or of a state tensor of its shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def pieces(engine: Any) -> list[Piece]:
    """Return what this rank's optimizer steps. Local. Without ZeRO every data-parallel rank has all of it."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(_stage3(optimizer))
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return list(_flat(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups))
    if isinstance(optimizer, BF16_Optimizer):
        return list(_flat(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition))
    parameters = (p for p in engine.module.parameters() if p.requires_grad)
    return [Piece(p, 0, p.numel(), p, 0) for p in parameters]


def _flat(groups: list[list[nn.Parameter]], partitions: list[torch.Tensor]) -> Iterator[Piece]:
    for parameters, partition in zip(groups, partitions, strict=True):
        for parameter in parameters:
            # None: all of this parameter is in other ranks' partitions.
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                place, source = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Piece(parameter, place.start, place.numel, partition, source.start)


def _stage3(optimizer: Any) -> Iterator[Piece]:
    for parameters, partition in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        for parameter in parameters:
            _, offset, width = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = width * optimizer._get_param_partition_rank(parameter)
            # The last partitions are padded.
            numel = min(width, parameter.ds_numel - start)
            if numel > 0:
                yield Piece(parameter, start, numel, partition, offset)


def fragments(engine: Any, groups: ParallelGroups) -> Iterator[Fragment]:
    """Yield what this rank has to write: over all ranks, every element of the model once. Local; copies to CPU.

    A copy of a tied weight on a later stage is not yielded. Without ZeRO the data-parallel ranks share the work.
    """
    for piece in pieces(engine):
        if getattr(piece.parameter, "ds_pipe_replicated", False):
            continue
        spec = shard_spec(piece.parameter)
        if spec.dim is None and groups.tensor.rank != 0:
            continue
        first, count = _share(piece.numel, groups) if not engine.zero_optimization() else (0, piece.numel)
        if count == 0:
            continue
        for kind in KINDS:
            values = piece.elements(_tensor(engine, piece, kind)).narrow(0, first, count)
            copied = values.to("cpu", torch.float32, copy=True)
            yield Fragment(kind, spec, groups.tensor.rank, groups.tensor.size, piece.start + first, copied)


def _share(numel: int, groups: ParallelGroups) -> tuple[int, int]:
    rank, size = groups.data.rank, groups.data.size
    first = numel * rank // size
    return first, numel * (rank + 1) // size - first


def _tensor(engine: Any, piece: Piece, kind: str) -> torch.Tensor:
    if kind == "weight":
        return piece.master
    # fp16 runs may skip every step so far: there is no state yet, and so no moment but zero.
    state = engine.basic_optimizer.state.get(piece.master, {})
    tensor: torch.Tensor = state[kind] if kind in state else torch.zeros_like(piece.master)
    return tensor


def restore(engine: Any, read: ReadShard, scalars: Mapping[str, float]) -> None:
    """Put weights, moments and counters of a checkpoint into a newly built engine. Local.

    Args:
        engine: of DeepSpeed.
        read: see `ReadShard`; called once for each tensor that this rank holds a part of.
        scalars: what `scalars` returned when it was saved.
    """
    by_parameter: dict[nn.Parameter, list[Piece]] = {}
    for piece in pieces(engine):
        by_parameter.setdefault(piece.parameter, []).append(piece)
        _begin_state(engine.basic_optimizer, piece.master, int(scalars["optimizer_step"]))
    if isinstance(engine.basic_optimizer, DeepSpeedCPUAdam):
        _replay_steps(engine.basic_optimizer, int(scalars["optimizer_step"]))
    for parameter in engine.module.parameters():
        spec = shard_spec(parameter)
        own = by_parameter.get(parameter, [])
        weight = read("weight", spec).view(-1)
        for piece in own:
            piece.elements(piece.master).copy_(weight.narrow(0, piece.start, piece.numel))
        _set_model_weight(parameter, weight)
        for kind in MOMENTS if own else ():
            moment = read(kind, spec).view(-1)
            for piece in own:
                state = engine.basic_optimizer.state[piece.master][kind]
                piece.elements(state).copy_(moment.narrow(0, piece.start, piece.numel))
    _set_scalars(engine, scalars)


def _begin_state(optimizer: Any, master: torch.Tensor, step: int) -> None:
    state = optimizer.state[master]
    if "exp_avg" not in state:
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(master, memory_format=torch.preserve_format)
    if isinstance(optimizer, DeepSpeedCPUAdam):
        state["step"] = step
    else:
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=master.device if fused else "cpu")


def _replay_steps(optimizer: Any, step: int) -> None:
    """Bring DeepSpeed's CPU kernel to `step`.

    It multiplies up beta^step in fp32 over the steps that it sees, but takes a power when it begins in the middle: the
    two differ in the last bits, and so would every weight.
    """
    group = optimizer.param_groups[0]
    # From here on 1 - beta^step rounds to 1 either way.
    if max(group["betas"]) ** step < _VANISHED:
        return
    rest = [torch.zeros(1) for _ in range(4)]
    numbers = (group["lr"], *group["betas"], group["eps"], 0.0, group["bias_correction"])
    for number in range(1, step + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, number, *numbers, *rest)


def _set_model_weight(parameter: nn.Parameter, weight: torch.Tensor) -> None:
    """Set what forward reads: the parameter itself and, with ZeRO-3, the partition that it is gathered from."""
    sharded: Any = parameter
    if hasattr(parameter, "ds_tensor"):
        partition = sharded.ds_tensor
        start = partition.numel() * torch.distributed.get_rank(sharded.ds_process_group)
        numel = max(0, min(partition.numel(), weight.numel() - start))
        partition.data.view(-1)[:numel].copy_(weight.narrow(0, min(start, weight.numel()), numel))
    # ZeRO-3 leaves an empty parameter where it is not kept whole.
    if parameter.numel() == weight.numel():
        parameter.data.view(-1).copy_(weight)


def scalars(engine: Any) -> dict[str, float]:
    """Return what must be restored besides tensors: counters and the dynamic loss scale. Local; may sync the host."""
    steps = [state["step"] for state in engine.basic_optimizer.state.values() if "step" in state]
    found = {
        "optimizer_step": float(steps[0]) if steps else 0.0,
        "skipped_steps": float(engine.skipped_steps),
        "global_steps": float(engine.global_steps),
    }
    if engine.fp16_enabled():
        scaler = engine.optimizer.loss_scaler
        found |= {name: float(getattr(scaler, name)) for name in _SCALER}
    return found


def _set_scalars(engine: Any, values: Mapping[str, float]) -> None:
    engine.skipped_steps = int(values["skipped_steps"])
    engine.global_steps = int(values["global_steps"])
    # A checkpoint of another precision has no loss scale; this run's initial one holds then.
    if engine.fp16_enabled() and _SCALER[0] in values:
        scaler = engine.optimizer.loss_scaler
        for name in _SCALER:
            number: Callable[[float], float | int] = float if name == "cur_scale" else int
            setattr(scaler, name, number(values[name]))
