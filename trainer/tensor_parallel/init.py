"""Parameters are made empty, and filled later, module by module, from one source.

An empty parameter is on torch's meta device: it has a shape, its `ShardSpec` and its `Initial` values, and takes no
memory. So a model is built without memory, its layers are filled one after the other, and their source may be the keyed
draw of this file, a checkpoint, or nothing at all if a checkpoint is about to be read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from trainer.spec.execution import Execution
from trainer.spec.tensors import Init, TensorSpec
from trainer.tensor_parallel.shard import (
    Part,
    ShardSpec,
    first_element,
    parts_of,
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
    """Standard deviation of the normal distribution around 0 that they are drawn from; 0: they are not."""
    value: float = 0.0
    """Value of all of them, if they are not drawn."""
    bound: float = 0.0
    """Largest absolute value of the uniform distribution around 0 that they are drawn from; 0: they are not."""


Source = Callable[[ShardSpec, Initial], torch.Tensor]
"""Source of values: (spec, initial) -> this rank's shard of that tensor, fp32 on CPU, of shape
`spec.local_shape(tensor_parallel_size)`. The parameter takes the tensor as its own."""


@dataclass(frozen=True)
class TensorContext:
    """The context with which a layer that is sharded over the tensor-parallel group is built."""

    tensor: Group
    """Tensor-parallel group; a FakeGroup builds one rank's share without peers."""
    sequence_parallel: bool
    """Hidden states between layers are sequence shards `[S/tp, B, H]`."""

    execution: Execution
    """The model's padding, its initial standard deviations, and the tensors that are trained."""

    def parameters(self, tensors: Iterable[TensorSpec]) -> dict[str, nn.Parameter]:
        """Return this rank's parameters of one module, empty, by the last part of their names, such as "weight".

        Rows that every rank holds whole are a parameter of their own, such as "shared_weight": keys and values with
        fewer heads than ranks. No collective, no memory.

        Raises:
            ConfigError: a block of a tensor cannot be sharded into equal parts.
        """
        found: dict[str, nn.Parameter] = {}
        for tensor in tensors:
            leaf = tensor.name.rpartition(".")[2]
            spec = shard_spec_of(tensor, self.execution.vocab_unit, self.tensor.size)
            for part in parts_of(spec, self.tensor.size):
                found[f"shared_{leaf}" if part.first else leaf] = self._parameter(tensor, spec, part)
        return found

    def _parameter(self, tensor: TensorSpec, spec: ShardSpec, part: Part) -> nn.Parameter:
        shape = spec.local_shape(self.tensor.size)
        rows = part.numel // math.prod(shape[1:])
        empty = torch.empty((rows, *shape[1:]), dtype=torch.float32, device="meta")
        parameter = nn.Parameter(empty, requires_grad=self.execution.trains(tensor))
        set_shard_spec(parameter, spec, part)
        setattr(parameter, _ATTRIBUTE, tensor)
        setattr(parameter, _INITIAL, initial_of(tensor, self.execution))
        return parameter


def initial_of(tensor: TensorSpec, execution: Execution) -> Initial:
    """Return the values that a tensor begins with in a run."""
    if tensor.init in (Init.ones, Init.zeros):
        return Initial(value=1.0 if tensor.init is Init.ones else 0.0)
    if tensor.init is Init.uniform:
        return Initial(bound=1 / math.sqrt(tensor.shape[1]))
    return Initial(std=execution.std(tensor.init))


def tensor_spec(parameter: nn.Parameter) -> TensorSpec:
    """Return the model's entry for the tensor that a parameter of `TensorContext` is a part of."""
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

    Parameters that held values lose them. A reference to a parameter from before refers to the old one.

    Args:
        layers: modules made of parameters of `TensorContext`.
        source: source of the values.
        device: device of the parameters.
        dtype: dtype of the parameters; fp32 values are rounded to it before they go to the device.
        then: called with each parameter before the next one is made.

    Returns:
        The global names of the parameters.
    """
    names: set[str] = set()
    for module in layers.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            spec = shard_spec(empty)
            values = source(spec, getattr(empty, _INITIAL))
            if values.numel() > empty.numel():
                values = values.view(-1).narrow(0, first_element(empty), empty.numel()).view(empty.shape).clone()
            filled = nn.Parameter(values.to(dtype).to(device), requires_grad=empty.requires_grad)
            del values
            # The marks that say how it is sharded, and tell DeepSpeed that it is.
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
    drawn = torch.empty(spec.unpadded_shape, dtype=torch.float32, device="cpu")
    return with_padding(drawn.normal_(0.0, std, generator=_generator(spec, seed)), spec)


def draw_uniform(spec: ShardSpec, bound: float, seed: int) -> torch.Tensor:
    """Draw the full tensor of `spec`, which has no padding, from U(-bound, bound), fp32 on CPU."""
    drawn = torch.empty(spec.global_shape, dtype=torch.float32, device="cpu")
    return drawn.uniform_(-bound, bound, generator=_generator(spec, seed))


def _generator(spec: ShardSpec, seed: int) -> torch.Generator:
    # A CPU generator takes 64 bits, but manual_seed only accepts what fits a signed one.
    return torch.Generator(device="cpu").manual_seed(stable_hash(seed, spec.name) >> 1)


@dataclass(frozen=True)
class Drawn:
    """The source of a new model: tensors are drawn whole by (seed, name), then sharded: all layouts start equal.

    It takes the memory of the largest whole tensor, for as long as that one is sharded.
    """

    seed: int
    tensor: Group
    """Tensor-parallel group."""

    def __call__(self, spec: ShardSpec, initial: Initial) -> torch.Tensor:
        """Return this rank's part. No collective."""
        rank, size = self.tensor.rank, self.tensor.size
        if initial.std == 0 and initial.bound == 0:
            return torch.full(spec.local_shape(size), initial.value, dtype=torch.float32, device="cpu")
        if initial.bound:
            drawn = draw_uniform(spec, initial.bound, self.seed)
        else:
            drawn = draw_normal(spec, initial.std, self.seed)
        return drawn if size == 1 else shard(drawn, spec, rank, size)


@dataclass(frozen=True)
class Reserved:
    """Memory without values: for an engine that a checkpoint is loaded into before its first step."""

    tensor: Group
    """Tensor-parallel group."""

    def __call__(self, spec: ShardSpec, initial: Initial) -> torch.Tensor:
        """Return uninitialised memory. No collective."""
        return torch.empty(spec.local_shape(self.tensor.size), dtype=torch.float32, device="cpu")
