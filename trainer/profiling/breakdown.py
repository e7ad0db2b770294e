"""Divide the time of recorded steps into parts, from the events of a trace. Pure arithmetic, no torch.

On the CPU one thread does everything, and its time is divided. On a GPU the device's time is divided: a moment in which
it computes is computation, even if it also communicates; the rest is communication that no computation hides, then
copies; and when the device is idle, the activity of the host says why.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.profiling import names
from trainer.profiling.intervals import Interval, divide, length, merged, overlap

Event = Mapping[str, Any]
"""An event of a Chrome trace: `name`, `cat`, `ts` and `dur` in microseconds, `pid`, `tid`, `args`."""

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_IN_PROGRAMS = "_c10d_functional::"
"""Namespace of torch.compile's collectives. Only blocks are compiled, and only tensor parallelism communicates
there."""
_NO_WORK = ("autograd", "torch", "c10d", "_c10d_functional", "gloo", "nccl", "profiler")
"""Namespaces of operators that only contain others, or that communicate."""
_COMPILED = "## Call CompiledFxGraph"
"""Name of a compiled program of torch.compile; its kernels have no names of their own on a CPU."""


@dataclass(frozen=True)
class Operator:
    """An operator (CPU: time without the operators that it called) or a kernel (GPU)."""

    name: str
    nanoseconds: int
    calls: int


@dataclass(frozen=True)
class Breakdown:
    """Division of the time of one rank's recorded steps."""

    steps: int
    nanoseconds: int
    """Length of all recorded steps."""
    parts: Mapping[str, int]
    """ns by name, see `names.PARTS`. Their sum is `nanoseconds`."""
    operators: Sequence[Operator]
    """All operators, the largest first."""
    of_device: bool = False
    """True if a device's time is divided, not the host's."""


class _Ranges:
    """Named ranges of one thread, of which no two overlap."""

    def __init__(self, ranges: Iterable[tuple[Interval, str]]) -> None:
        self._ranges = sorted(ranges)
        self._begins = [interval[0] for interval, _ in self._ranges]

    def at(self, moment: int) -> str | None:
        """Return the name of the range that holds a moment."""
        index = bisect_right(self._begins, moment) - 1
        if index < 0 or moment >= self._ranges[index][0][1]:
            return None
        return self._ranges[index][1]

    def by_name(self) -> dict[str, list[Interval]]:
        """Return the intervals of each name."""
        found: dict[str, list[Interval]] = {}
        for interval, name in self._ranges:
            found.setdefault(name, []).append(interval)
        return found


def _interval(event: Event) -> Interval:
    begin = round(event["ts"] * 1000)
    return begin, begin + round(event["dur"] * 1000)


def _named(events: Iterable[Event], prefix: str) -> list[tuple[Interval, str]]:
    # On a GPU the profiler shows each range a second time, on the device; that copy is not ours.
    found = (e for e in events if e["cat"] == "user_annotation" and e["name"].startswith(prefix))
    return [(_interval(event), event["name"].removeprefix(prefix)) for event in found]


def _calls(events: Iterable[Event]) -> list[tuple[Interval, str]]:
    """Return the communication calls of one thread, in order, without calls inside another one."""
    events = list(events)
    compiled = [event for event in events if event["cat"] == "cpu_op" and event["name"].startswith(_IN_PROGRAMS)]
    found = _named(events, names.COMMUNICATION)
    kind = "other"
    for event in sorted(compiled, key=lambda event: (event["ts"], -event["dur"])):
        said = event["name"].removeprefix(_IN_PROGRAMS).replace("_", "-")
        # `wait_tensor` waits for a collective that was started before.
        kind = next((known for known in names.KINDS if said.startswith(known)), kind)
        found.append((_interval(event), f"tensor {kind}"))
    outermost: list[tuple[Interval, str]] = []
    for call in sorted(found, key=lambda call: (call[0][0], -call[0][1])):
        if not outermost or call[0][0] >= outermost[-1][0][1]:
            outermost.append(call)
    return outermost


def break_down(events: Iterable[Event]) -> Breakdown:
    """Divide the recorded steps of one rank.

    Args:
        events: the whole `traceEvents` of its trace.

    Raises:
        ValueError: the trace holds no step.
    """
    events = [event for event in events if event.get("ph") == "X" and "dur" in event]
    steps = [event for event in events if event["cat"] == "user_annotation" and event["name"].startswith(names.STEP)]
    if not steps:
        raise ValueError("a trace must hold a step, but holds none")
    window = merged(_interval(event) for event in steps)
    thread = (steps[0]["pid"], steps[0]["tid"])
    main = [event for event in events if (event["pid"], event["tid"]) == thread]
    phases = _Ranges(
        (interval, names.PART_OF_PHASE.get(name, names.HOST)) for interval, name in _named(main, names.PHASE)
    )
    on_device = [event for event in events if event["cat"] in _ON_DEVICE]
    if on_device:
        layers = _device_layers(on_device, _launches(events), phases)
        operators = _kernels(on_device, window)
    else:
        layers = _host_layers(main, phases)
        operators = _operators(main, window)
    parts = divide(window, layers, names.HOST)
    return Breakdown(len(steps), length(window), parts, operators, of_device=bool(on_device))


def _host_layers(main: Sequence[Event], phases: _Ranges) -> list[tuple[str, Sequence[Interval]]]:
    by_part = phases.by_name()
    layers: list[tuple[str, Sequence[Interval]]] = list(_Ranges(_calls(main)).by_name().items())
    layers += [(part, by_part.get(part, ())) for part in (names.OPTIMIZER, names.DATA)]
    work = merged(_interval(event) for event in main if event["cat"] == "cpu_op" and _works(event["name"]))
    for part in (names.FORWARD, names.BACKWARD):
        layers.append((part, overlap(work, merged(by_part.get(part, ())))))
    return layers


def _works(operator: str) -> bool:
    namespace, found, _ = operator.partition("::")
    return operator.startswith(_COMPILED) or (bool(found) and namespace not in _NO_WORK)


@dataclass(frozen=True)
class _Launch:
    """A request of the host to the device: its time, and whether it was made in a call that communicates."""

    moment: int
    communication: str | None


def _launches(events: Sequence[Event]) -> dict[int, _Launch]:
    """Return the launches by the number that links them to the device's events."""
    by_thread: dict[tuple[Any, Any], list[Event]] = {}
    for event in events:
        by_thread.setdefault((event["pid"], event["tid"]), []).append(event)
    threads = {thread: _Ranges(_calls(theirs)) for thread, theirs in by_thread.items()}
    nothing = _Ranges(())
    found = {}
    for event in events:
        if event["cat"] in _LAUNCHES and "correlation" in event.get("args", {}):
            moment = _interval(event)[0]
            ranges = threads.get((event["pid"], event["tid"]), nothing)
            found[event["args"]["correlation"]] = _Launch(moment, ranges.at(moment))
    return found


def _device_layers(
    on_device: Sequence[Event], launches: Mapping[int, _Launch], phases: _Ranges
) -> list[tuple[str, Sequence[Interval]]]:
    work: dict[str, list[Interval]] = {part: [] for part in (names.FORWARD, names.BACKWARD, names.OPTIMIZER)}
    talk: dict[str, list[Interval]] = {}
    copies: list[Interval] = []
    for event in on_device:
        interval = _interval(event)
        launch = launches.get(event.get("args", {}).get("correlation", -1))
        part = phases.at(launch.moment) if launch else None
        if "nccl" in event["name"].lower() or (launch and launch.communication):
            talk.setdefault((launch and launch.communication) or "mesh other", []).append(interval)
        elif event["cat"] == "gpu_memcpy" and "DtoD" not in event["name"]:
            copies.append(interval)
        elif part in work:
            work[part].append(interval)
    by_part = phases.by_name()
    idle = [(part, by_part.get(part, ())) for part in (names.OPTIMIZER, names.DATA)]
    return [*work.items(), *talk.items(), (names.COPIES, copies), *idle]


def _kernels(on_device: Sequence[Event], window: Sequence[Interval]) -> list[Operator]:
    times = [(event["name"], _interval(event)) for event in on_device if overlap(window, merged([_interval(event)]))]
    return _ranked((name, end - begin) for name, (begin, end) in times)


def _operators(main: Sequence[Event], window: Sequence[Interval]) -> list[Operator]:
    """Return the time of each operator, without the time of the operators that it called."""
    calls = [(_interval(event), event["name"]) for event in main if event["cat"] == "cpu_op" and _works(event["name"])]
    calls += _calls(main)
    calls.sort(key=lambda call: (call[0][0], -call[0][1]))
    spent: list[int] = []
    stack: list[int] = []
    for index, ((begin, end), _) in enumerate(calls):
        while stack and calls[stack[-1]][0][1] <= begin:
            stack.pop()
        if stack:
            spent[stack[-1]] -= end - begin
        spent.append(end - begin)
        stack.append(index)
    inside = _Ranges((interval, "") for interval in window)
    return _ranked(
        (name, own)
        for ((begin, _), name), own in zip(calls, spent, strict=True)
        if _works(name) and inside.at(begin) is not None
    )


def _ranked(times: Iterable[tuple[str, int]]) -> list[Operator]:
    total: dict[str, tuple[int, int]] = {}
    for name, nanoseconds in times:
        before, calls = total.get(name, (0, 0))
        total[name] = (before + nanoseconds, calls + 1)
    found = [Operator(name, nanoseconds, calls) for name, (nanoseconds, calls) in total.items()]
    return sorted(found, key=lambda operator: (-operator.nanoseconds, operator.name))
