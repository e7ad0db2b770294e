"""Parameters are made empty, and filled later, module by module, from one source.

An empty parameter is on torch's meta device: it has a shape, its `ShardSpec` and its `Initial` values, and takes no
memory. So a model is built without any, its layers are filled one after the other, and what fills them may be the keyed
draw of this file, a checkpoint, or nothing at all where a checkpoint is about to be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from trainer.spec.execution import Execution
from trainer.spec.tensors import Init, TensorSpec
from trainer.tensor_parallel.shard import (
    ShardSpec,
    set_shard_spec,
    shard,
    shard_spec,
    shard_spec_of,
    with_padding,
)
from trainer.topology.groups import Group

_ATTRIBUTE = "trident_tensor_spec"
_INITIAL = "trident_initial"


@dataclass(frozen=True)
class Initial:
    """The values that a tensor begins with in a new model."""

    std: float = 0.0
    """Of the normal distribution around 0 that they are drawn from; 0: all of them are `value`."""
    value: float = 0.0


Source = Callable[[ShardSpec, Initial], torch.Tensor]
"""Where values come from: (spec, initial) -> this rank's shard of that tensor, fp32 on CPU, of shape
`spec.local_shape(tensor_parallel_size)`. The parameter takes the tensor as its own."""


@dataclass(frozen=True)
class TensorContext:
    """What a layer that is cut over the tensor-parallel group is built with."""

    tensor: Group
    """Tensor-parallel group; a FakeGroup builds one rank's share without peers."""
    sequence_parallel: bool
    """Hidden states between layers are sequence shards `[S/tp, B, H]`."""

    execution: Execution
    """How the model is computed: its padding, its standard deviations at the start, what of it is trained."""

    def parameter(self, tensor: TensorSpec) -> nn.Parameter:
        """Return this rank's part of a tensor, empty. No collective, no memory.

        Raises:
            ConfigError: a block of the tensor cannot be cut into equal parts.
        """
        spec = shard_spec_of(tensor, self.execution.vocab_unit)
        empty = torch.empty(spec.local_shape(self.tensor.size), dtype=torch.float32, device="meta")
        parameter = nn.Parameter(empty, requires_grad=self.execution.trains(tensor))
        set_shard_spec(parameter, spec)
        setattr(parameter, _ATTRIBUTE, tensor)
        setattr(parameter, _INITIAL, initial_of(tensor, self.execution))
        return parameter

    def parameters(self, tensors: Iterable[TensorSpec]) -> dict[str, nn.Parameter]:
        """Return the parameters of one module by the last part of their names, such as "weight" and "bias"."""
        return {tensor.name.rpartition(".")[2]: self.parameter(tensor) for tensor in tensors}


def initial_of(tensor: TensorSpec, execution: Execution) -> Initial:
    """Return the values that a tensor begins with in a run."""
    if tensor.init in (Init.ones, Init.zeros):
        return Initial(value=1.0 if tensor.init is Init.ones else 0.0)
    return Initial(std=execution.std(tensor.init))


def tensor_spec(parameter: nn.Parameter) -> TensorSpec:
    """Return what the model says of the tensor that a parameter of `TensorContext` is a part of."""
    spec = getattr(parameter, _ATTRIBUTE, None)
    if not isinstance(spec, TensorSpec):
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} must be made by a context, but is not")
    return spec


def fill(
    layers: nn.Module,
    source: Source,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    then: Callable[[nn.Parameter], None] | None = None,
) -> set[str]:
    """Give every parameter memory and values, one after the other, in the order of `layers.parameters()`. Local.

    Parameters that held values lose them. Whoever keeps a reference to a parameter keeps the old one.

    Args:
        layers: made of parameters of `TensorContext`.
        source: of the values.
        device: where the parameters go.
        dtype: of the parameters; fp32 values are rounded to it before they go there.
        then: what happens to a parameter before the next one is made.

    Returns:
        The global names of the parameters.
    """
    names: set[str] = set()
    for module in layers.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            spec = shard_spec(empty)
            values = source(spec, getattr(empty, _INITIAL))
            filled = nn.Parameter(values.to(dtype).to(device), requires_grad=empty.requires_grad)
            del values
            # The marks that say how it is cut, and to DeepSpeed that it is.
            vars(filled).update(vars(empty))
            setattr(module, name, filled)
            names.add(spec.name)
            if then is not None:
                then(filled)
    return names


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


@dataclass(frozen=True)
class Drawn:
    """The source of a new model: tensors are drawn whole by (seed, name), then cut, so that every layout starts equal.

    Takes the memory of the largest whole tensor, for as long as it is cut.
    """

    seed: int
    tensor: Group
    """Tensor-parallel group."""

    def __call__(self, spec: ShardSpec, initial: Initial) -> torch.Tensor:
        """Return this rank's part. No collective."""
        rank, size = self.tensor.rank, self.tensor.size
        if initial.std == 0:
            return torch.full(spec.local_shape(size), initial.value, dtype=torch.float32, device="cpu")
        drawn = draw_normal(spec, initial.std, self.seed)
        return drawn if size == 1 else shard(drawn, spec, rank, size)


@dataclass(frozen=True)
class Reserved:
    """Memory whose values are about to come: for an engine that a checkpoint is loaded into before its first step."""

    tensor: Group
    """Tensor-parallel group."""

    def __call__(self, spec: ShardSpec, initial: Initial) -> torch.Tensor:
        """Return memory as it is. No collective."""
        return torch.empty(spec.local_shape(self.tensor.size), dtype=torch.float32, device="cpu")
