"""Bytes of the tensors that an engine holds, by what they are for: counted when memory has run out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def held_bytes(engine: Any, device: torch.device) -> dict[str, int]:
    """Return purpose (weights, gradients, master, moments) -> bytes on a kind of device. Local; no device sync.

    A storage counts once, for the first purpose that it serves: fp32 weights that are their own master weights are
    weights. Makes no tensor.

    Args:
        engine: DeepSpeed's engine, one of `deepspeed_engines`.
        device: tensors elsewhere, such as those of offload, do not count.
    """
    seen: set[int] = set()
    found: dict[str, int] = {}
    for purpose, tensor in _owned(engine):
        storage = tensor.untyped_storage()
        if tensor.device.type == device.type and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found[purpose] = found.get(purpose, 0) + storage.nbytes()
    return found


def _owned(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    optimizer, inner = engine.optimizer, engine.basic_optimizer
    parameters = list(engine.module.parameters())
    # Of ZeRO-3 a rank keeps a part of each.
    weights = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")] + [p.data for p in parameters]
    yield from (("weights", tensor) for tensor in weights)
    stepped = [parameter for group in inner.param_groups for parameter in group["params"]]
    stepped += _tensors(getattr(optimizer, "fp32_partitioned_groups_flat", ()))
    gradients = [p.grad for p in [*parameters, *stepped] if p.grad is not None]
    for name, value in vars(optimizer).items():
        if "grad" in name.lower() or name == "_held":
            gradients += _tensors(value)
    yield from (("gradients", tensor) for tensor in gradients)
    for state in inner.state.values():
        # The count of steps, a number, is there once for each.
        yield from (("moments", moment) for kind, moment in state.items() if kind != "step")
    yield from (("moments", average) for average in engine.sharding.averages.values())
    yield from (("master", tensor.data) for tensor in stepped)


def _tensors(value: object) -> list[torch.Tensor]:
    """Return the tensors in a value of DeepSpeed's: one, or lists, tuples and dictionaries of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    flat = [value.flat_partition] if hasattr(value, "flat_partition") else []
    return [tensor for one in [*value, *flat] for tensor in _tensors(one)]
