"""What both engine faces do to a DeepSpeed engine: learning rate, results, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from torch import nn

from trainer.engine.face import StepResult
from trainer.tensor_parallel.shard import ShardSpec, shard_spec
from trainer.topology.groups import ParallelGroups


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = learning_rate


def step_result(engine: Any, loss: torch.Tensor, groups: ParallelGroups) -> StepResult:
    """Collect loss and gradient norm as device tensors, without reading them."""
    norm = engine.get_global_grad_norm()
    if norm is None:
        raise RuntimeError("DeepSpeed must report a gradient norm after a step, but reported none")
    return StepResult(loss, torch.as_tensor(norm, dtype=torch.float32, device=groups.device).reshape(()))


def gathered_parameters(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """Return detached copies of the local parameters by global name, fp32, on CPU.

    Parameters that ZeRO-3 has sharded are gathered first: then collective over the data-parallel group.
    """
    parameters = list(module.parameters())
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    found: dict[str, torch.Tensor] = {}
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        for parameter in parameters:
            found[shard_spec(parameter).name] = parameter.detach().to("cpu", torch.float32, copy=True)
    return found


def local_shard_specs(module: nn.Module) -> Mapping[str, ShardSpec]:
    """Return the shard spec of every local parameter by global name."""
    specs = (shard_spec(parameter) for parameter in module.parameters())
    return {spec.name: spec for spec in specs}
