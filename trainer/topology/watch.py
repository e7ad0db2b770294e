"""Listening to what goes over a group, without the group knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


class Listener:
    """Is told of every collective of one group, in the order in which this rank calls them; overrides what it needs."""

    def sends(self, tensor: torch.Tensor) -> None:
        """Hear that this rank gives `tensor` to the others. It must not be changed."""

    def waits(self) -> None:
        """Hear that this rank begins to wait for the others."""

    def received(self, tensor: torch.Tensor) -> None:
        """Hear that the wait is over, with its result."""


@dataclass
class Watch:
    """The listener of a group: nobody, most of the time."""

    listener: Listener | None = None

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Let `listener` hear of everything inside, in place of the listener before."""
        before, self.listener = self.listener, listener
        try:
            yield
        finally:
            self.listener = before

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def sends(self, tensor: torch.Tensor) -> None:
        """Tell the listener."""
        if self.listener is not None:
            self.listener.sends(tensor)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def waits(self) -> None:
        """Tell the listener."""
        if self.listener is not None:
            self.listener.waits()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def received(self, tensor: torch.Tensor) -> None:
        """Tell the listener."""
        if self.listener is not None:
            self.listener.received(tensor)
