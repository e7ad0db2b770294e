"""Checksums of everything that a rank computes in a forward pass, to compare two passes bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from trainer.engine.face import Recorded
from trainer.topology.groups import Group
from trainer.topology.watch import Listener

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type of the width of an element, by bytes."""


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor's bit patterns as integers, [] int64 on its device: any flip of one bit changes it."""
    return tensor.detach().contiguous().view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)


class Recorder(Listener):
    """Notes the outputs of a module's innermost layers, and the tensors that this rank sends to and gets from a group.

    Checksums stay on the device until `read`.
    """

    def __init__(self) -> None:
        self._names: list[tuple[str, bool]] = []
        self._sums: list[torch.Tensor] = []

    @contextmanager
    def listening(self, module: nn.Module, group: Group) -> Iterator[None]:
        """Note what happens inside.

        Args:
            module: everything that this rank runs; its inputs are the tensors that other stages sent.
            group: the tensor-parallel group.
        """
        with ExitStack() as stack:
            stack.callback(module.register_forward_pre_hook(lambda _, given: self._note("input", given, True)).remove)
            for name, part in module.named_modules():
                if part is module or not any(part.children()):
                    hook = lambda _, __, result, name=name: self._note(name or "output", result, False)  # noqa: E731
                    stack.callback(part.register_forward_hook(hook).remove)
            stack.enter_context(group.watch.listening(self))
            yield

    def sends(self, tensor: torch.Tensor) -> None:
        """Note a tensor that this rank has computed for the others."""
        self._note(f"{self._last()} (before its sum over ranks)", tensor, False)

    def received(self, tensor: torch.Tensor) -> None:
        """Note the result of a collective."""
        self._note("from other ranks", tensor, True)

    def read(self) -> list[Recorded]:
        """Return the notes in order. Syncs the host with the device."""
        sums: list[int] = torch.stack(self._sums).tolist() if self._sums else []
        return [Recorded(name, received, value) for (name, received), value in zip(self._names, sums, strict=True)]

    def _last(self) -> str:
        computed = [name for name, is_received in self._names if not is_received]
        return f"what follows {computed[-1]}" if computed else "the first layer"

    def _note(self, name: str, values: Any, is_received: bool) -> None:
        for tensor in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(tensor, torch.Tensor):
                self._names.append((name, is_received))
                self._sums.append(checksum(tensor))
