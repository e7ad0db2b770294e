"""Who owns the memory of a step: every tensor that is alive at the moment when most bytes are, by what it is for.

Counted by watching every operation, so that what C++ libraries allocate for themselves is not seen.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OWNERS = ("weights", "gathered", "gradients", "master", "moments", "buffers", "other")
"""What memory is for. `gathered`: weights of ZeRO-3 while they are whole. `buffers`: of collectives. `other`:
activations, and temporaries of an operation."""
_STEP = 1 << 20
"""Bytes by which the most must be exceeded before owners are counted anew."""
_LOOKS = (1, 8, 64, 512)
"""Operations after the fullest moment at which owners of its other tensors are looked for once more: some are handed to
their owner only when they are filled."""


class Census(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; `owners` is what the fullest moment had, in bytes.

    Args:
        engine: DeepSpeed's.
        device: whose memory counts.
    """

    def __init__(self, engine: Any, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._engine = engine
        self._device = device.type
        self._live: dict[int, int] = {}
        self._bytes = self._most = 0
        self._unowned: dict[int, int] = {}
        self._since = 0
        self.owners: dict[str, int] = dict.fromkeys(OWNERS, 0)

    def __enter__(self) -> Census:
        """Begin with what is alive."""
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        for tensor in tensors:
            self._see(tensor.data)
        self._count()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and see what it returns."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        self._since += 1
        if self._bytes > self._most + _STEP:
            self._count()
        elif self._since in _LOOKS:
            self._look_again()
        return found

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self._device or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or size == 0:
            return
        self._live[key] = size
        self._bytes += size
        # A storage keeps its Python object, so this is called when the memory goes.
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self._bytes -= self._live.pop(key, 0)

    def _count(self) -> None:
        self._most, self._since = self._bytes, 0
        self.owners = dict.fromkeys(OWNERS, 0)
        self._unowned = dict(self._live)
        self._look_again()
        self.owners["other"] = sum(self._unowned.values())

    def _look_again(self) -> None:
        """Give the tensors of the fullest moment that are still alive to their owners."""
        for owner, tensors in owned(self._engine):
            for tensor in tensors:
                key = tensor.untyped_storage()._cdata
                if key in self._live and key in self._unowned:
                    size = self._unowned.pop(key)
                    self.owners[owner] += size
                    self.owners["other"] -= size


def owned(engine: Any) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
    """Yield what DeepSpeed's engine holds, the first owner of a tensor first."""
    optimizer, inner = engine.optimizer, engine.basic_optimizer
    parameters = list(engine.module.parameters())
    yield "weights", [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    yield "gathered" if hasattr(parameters[0], "ds_tensor") else "weights", [p.data for p in parameters]
    stepped = [p for group in inner.param_groups for p in group["params"]]
    # ZeRO-3 hands its partitions to the optimizer only while it steps them.
    stepped += _attributes(optimizer, "fp32_partitioned_groups_flat")
    yield "buffers", list(_attributes(optimizer, "ipg", "temp_grad_buffer", "param_buffer_of"))
    yield "gradients", [p.grad for p in [*parameters, *stepped] if p.grad is not None]
    yield "gradients", list(_attributes(optimizer, "grad"))
    yield "moments", [t for state in inner.state.values() for t in _tensors(state)]
    yield "master", [p.data for p in stepped]


def _attributes(thing: Any, *words: str) -> Iterator[torch.Tensor]:
    for name, value in vars(thing).items():
        if any(word in name.lower() for word in words):
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in containers, and in the attributes of DeepSpeed's buckets."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif type(value).__name__.startswith("IPGBucket"):
        yield from _tensors(vars(value))
