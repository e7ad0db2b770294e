"""Initial weights: drawn for the whole tensor from (seed, name), then cut, so that every layout starts equal."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from trainer.tensor_parallel.shard import ShardSpec, set_shard_spec, shard, with_padding
from trainer.topology.groups import Group


def stable_hash(*parts: object) -> int:
    """Return a 64-bit hash of the parts' text: the same in every process, on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw_normal(spec: ShardSpec, std: float, seed: int) -> torch.Tensor:
    """Draw the full tensor of `spec` from N(0, std^2), fp32 on CPU. Vocabulary padding is zero and takes no draws."""
    # A CPU generator takes 64 bits, but manual_seed only accepts what fits a signed one.
    generator = torch.Generator(device="cpu").manual_seed(stable_hash(seed, spec.name) >> 1)
    drawn = torch.empty(spec.unpadded_shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
    return with_padding(drawn, spec)


def normal_parameter(spec: ShardSpec, std: float, seed: int, group: Group) -> nn.Parameter:
    """Return this rank's part of a tensor drawn by `draw_normal`. No collective."""
    parameter = nn.Parameter(shard(draw_normal(spec, std, seed), spec, group.rank, group.size))
    set_shard_spec(parameter, spec)
    return parameter


def constant_parameter(spec: ShardSpec, value: float, group: Group) -> nn.Parameter:
    """Return this rank's part of a tensor filled with `value`. No collective."""
    parameter = nn.Parameter(torch.full(spec.local_shape(group.size), value, dtype=torch.float32, device="cpu"))
    set_shard_spec(parameter, spec)
    return parameter
