"""Ranges in the trace around everything that a rank communicates, by Trident and by DeepSpeed alike.

All communication from Python goes through two classes of torch, ProcessGroup and Work. While steps are recorded, their
methods are replaced by ones that open a range; before and after, they are the original ones.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import record_function

from trainer.mesh import Mesh
from trainer.profiling.names import COMMUNICATION
from trainer.topology.exchange import Peers

_CALLS = {
    "all-reduce": ("allreduce", "allreduce_coalesced"),
    "all-gather": (
        *("allgather", "allgather_coalesced", "allgather_into_tensor_coalesced", "_allgather_base"),
        *("all_gather_single", "all_gather_single_coalesced"),
    ),
    "reduce-scatter": (
        *("reduce_scatter", "reduce_scatter_tensor_coalesced", "_reduce_scatter_base"),
        *("reduce_scatter_single", "reduce_scatter_single_coalesced"),
    ),
    "broadcast": ("broadcast",),
    "messages": ("send", "recv", "recv_anysource"),
    "other": (
        *("reduce", "gather", "scatter", "alltoall", "alltoall_base", "all_to_all_single"),
        *("barrier", "monitored_barrier"),
    ),
    # Sends what the calls before it only collected.
    "": ("_end_coalescing",),
}
"""Methods of ProcessGroup by kind; a version of torch need not have all of them."""
_MADE_OF_MESSAGES = {
    "all-reduce": ("all_reduce", "start_sum"),
    "all-gather": ("start_all_gather",),
    "reduce-scatter": ("start_reduce_scatter",),
}
"""Methods of Peers: their messages count as a part of the collective that sends them."""

_Method = Callable[..., Any]


def axis_of(mesh: Mesh, ranks: list[int]) -> str | None:
    """Return the axis along which a group lies: tensor, data, pipeline, or mesh for more than one. None: one rank."""
    places = [mesh.coordinate(rank) for rank in ranks]
    along = {
        "tensor": len({place.tp_rank for place in places}) > 1,
        "data": len({place.dp_rank for place in places}) > 1,
        "pipeline": len({place.stage for place in places}) > 1,
    }
    axes = [axis for axis, differs in along.items() if differs]
    return "mesh" if len(axes) > 1 else next(iter(axes), None)


class CommunicationMarks:
    """Puts the ranges in, and takes them out again. Local; for one thread to call, whichever threads communicate.

    Args:
        mesh: the mesh of the run; it says which axis a group belongs to.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._axes: dict[str, str | None] = {}
        self._works: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._thread = threading.local()
        self._originals: list[tuple[type, str, Any]] = []

    def put_in(self) -> None:
        """Start marking."""
        for kind, methods in _CALLS.items():
            for name in methods:
                self._replace(dist.ProcessGroup, name, partial(self._marked, kind=kind))
        for kind, methods in _MADE_OF_MESSAGES.items():
            for name in methods:
                self._replace(Peers, name, partial(self._part_of, kind=kind))
        self._replace(dist.Work, "wait", self._marked_wait)

    def take_out(self) -> None:
        """Restore the classes as they were. Does nothing the second time."""
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)
        self._works.clear()

    def _replace(self, owner: type, name: str, wrapped: Callable[[_Method], _Method]) -> None:
        original = vars(owner).get(name)
        if original is not None:
            self._originals.append((owner, name, original))
            # Compiled blocks call it too, and torch would compile it in the middle of a recorded step.
            marked = torch.compiler.disable(wrapped(original))  # type: ignore[no-untyped-call]
            setattr(owner, name, marked)

    def _marked(self, original: _Method, kind: str) -> _Method:
        def call(group: Any, *arguments: Any, **named: Any) -> Any:
            known = self._thread.__dict__
            meant = known.get("part_of") or kind or known.get("last", "other")
            known["last"] = meant
            label = self._label(group, meant)
            if label is None:
                return original(group, *arguments, **named)
            with _range(label):
                work = original(group, *arguments, **named)
            if isinstance(work, dist.Work):
                self._works[work] = label
            return work

        return call

    def _part_of(self, original: _Method, kind: str) -> _Method:
        def call(*arguments: Any, **named: Any) -> Any:
            known = self._thread.__dict__
            before = known.get("part_of")
            known["part_of"] = before or kind
            try:
                return original(*arguments, **named)
            finally:
                known["part_of"] = before

        return call

    def _marked_wait(self, original: _Method) -> _Method:
        def wait(work: Any, *arguments: Any, **named: Any) -> Any:
            label = self._works.get(work)
            if label is None:
                return original(work, *arguments, **named)
            with _range(label):
                return original(work, *arguments, **named)

        return wait

    def _label(self, group: Any, kind: str) -> str | None:
        name = group.group_name
        if name not in self._axes:
            self._axes[name] = axis_of(self._mesh, dist.get_process_group_ranks(group))
        axis = self._axes[name]
        if axis == "mesh" and kind == "messages":
            # DeepSpeed's stages send to each other over the group of all ranks.
            axis = "pipeline"
        return f"{axis} {kind}" if axis else None


def _range(label: str) -> AbstractContextManager[Any]:
    return record_function(COMMUNICATION + label)
