"""Pipeline schedules on a clock: when every pass of every rank begins and ends, and how long ranks wait. No torch.

An order (`planner.orders`) becomes a graph once, whose nodes are passes and messages with at most two nodes that they
wait for; times are the longest paths of it, in one walk for any costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from trainer.planner.orders import Exchange, Order, Pass, Work

_FORWARD, _BACKWARD = Work.forward, Work.backward


class Deadlock(ValueError):
    """Ranks of an order wait for each other, or for what nobody sends."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a micro-batch in every stage, and between them."""

    forward: Sequence[float]
    """Forward pass of each stage."""
    backward: Sequence[float]
    """Backward pass of each stage; without the gradient of the weights if `weights` are given."""
    message: Sequence[float] = ()
    """Message over the boundary behind each stage but the last, either way; empty: messages take no time."""
    weights: Sequence[float] = ()
    """Gradient of the weights of each stage, apart from backward; empty: it is a part of backward."""

    @classmethod
    def equal(cls, stages: int, forward: float, backward: float, message: float = 0.0, weights: float = 0.0) -> Costs:
        """Return the costs of stages that all take equally long."""
        behind = [message] * (stages - 1) if message else []
        return cls([forward] * stages, [backward] * stages, behind, [weights] * stages if weights else [])

    def table(self, stages: int, has_weights: bool) -> list[float]:
        """Return all as one list, at the places that `_Place` names.

        Raises:
            ValueError: there are not as many costs as stages.
        """
        backward, weights = list(self.backward), list(self.weights) or [0.0] * stages
        message = list(self.message) or [0.0] * (stages - 1)
        if {len(self.forward), len(backward), len(weights), len(message) + 1} != {stages}:
            raise ValueError(f"there must be costs of {stages} stages and {stages - 1} boundaries, but are {self}")
        if not has_weights:
            backward = [one + other for one, other in zip(backward, weights, strict=True)]
        return [0.0, *self.forward, *backward, *weights, *message]


class Span(NamedTuple):
    """A pass on the clock, in seconds since the step began."""

    what: Pass
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """An order that was played with some costs."""

    order: Order
    ranks: tuple[tuple[Span, ...], ...]
    """The passes of every rank, in order."""

    @cached_property
    def makespan(self) -> float:
        """Seconds until the last pass is over."""
        return max(spans[-1].end for spans in self.ranks)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds that every rank computes."""
        return tuple(sum(span.end - span.begin for span in spans) for spans in self.ranks)

    @property
    def idle(self) -> tuple[float, ...]:
        """Seconds of the makespan that every rank does not compute."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def idle_fraction(self) -> float:
        """Share of all ranks' time in which they do not compute, 0 to 1: waits for unequal stages are a part of it."""
        return sum(self.idle) / (len(self.ranks) * self.makespan)

    @property
    def cost(self) -> float:
        """Longest time of a rank from its first pass to its last: the zero-bubble paper's cost (arXiv 2401.10241)."""
        return max(spans[-1].end - spans[0].begin for spans in self.ranks)

    @property
    def bubble(self) -> float:
        """(cost - m (F + B + W)) / cost, of the busiest rank: the zero-bubble paper's bubble rate, 0 to 1."""
        return (self.cost - max(self.busy)) / self.cost

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Largest number of forward passes of every rank that wait for their backward pass."""
        return self.order.in_flight


def simulate(order: Order, costs: Costs) -> Timeline:
    """Play an order.

    Raises:
        Deadlock: ranks wait for each other, or for what nobody sends.
        ValueError: there are not as many costs as stages.
    """
    graph = _graph_of(order)
    table = costs.table(order.stages, graph.has_weights)
    ends = graph.ends(table)
    ranks = []
    for passes, nodes in zip(order.passes, graph.pass_nodes, strict=True):
        kinds = graph.kinds
        ranks.append(
            tuple(
                Span(each, ends[node] - table[kinds[node]], ends[node])
                for each, node in zip(passes, nodes, strict=True)
            )
        )
    return Timeline(order, tuple(ranks))


def makespan(order: Order, costs: Costs) -> float:
    """Return `simulate(order, costs).makespan` and nothing else: several times faster."""
    graph = _graph_of(order)
    return max(graph.ends(costs.table(order.stages, graph.has_weights)))


@dataclass(frozen=True)
class _Graph:
    """Nodes, each behind those that it waits for. Node 0 is the beginning of the step."""

    first: list[int]
    second: list[int]
    """Two nodes that a node waits for, which may be one."""
    kinds: list[int]
    """Place of its duration in `Costs.table`."""
    pass_nodes: tuple[tuple[int, ...], ...]
    has_weights: bool

    def ends(self, table: Sequence[float]) -> list[float]:
        """Return when every node is over."""
        found = [0.0]
        add = found.append
        nodes = zip(self.first, self.second, self.kinds, strict=True)
        next(nodes)
        for first, second, kind in nodes:
            one, other = found[first], found[second]
            add((one if one > other else other) + table[kind])
        return found


@lru_cache(maxsize=32)
def _graph_of(order: Order) -> _Graph:
    return _Player(order).graph()


class _Player:
    """Lets every rank go on until it waits, and notes the nodes. Passes are found by their index in flat lists."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._stages, self._width = order.stages, order.micro_batches
        self._ranks = len(order.ranks)
        size = len(Work) * order.stages * order.micro_batches
        self._done = [0] * size
        """Node of each pass; 0: not yet."""
        self._over = [0] * size
        """Node of each message of an exchange; 0: not yet."""
        self._posted: list[tuple[int, int] | None] = [None] * size
        """Rank and node of the end of a message that came first."""
        self._waiting = [-1] * size
        """Rank that waits for a pass, or for a message."""
        self._at = [0] * self._ranks
        self._node = [0] * self._ranks
        self._has_posted = [False] * self._ranks
        self._first, self._second, self._kinds = [0], [0], [0]
        self._places = (1, 1 + order.stages, 1 + 2 * order.stages, 1 + 3 * order.stages)
        """Places at which forward, backward, weights and messages begin in `Costs.table`."""

    def graph(self) -> _Graph:
        """Return the graph.

        Raises:
            Deadlock: ranks wait for each other, or for what nobody sends.
        """
        order = self._order
        self._runnable = list(range(self._ranks - 1, -1, -1))
        while self._runnable:
            self._run(self._runnable.pop())
        stuck = [rank for rank in range(self._ranks) if self._at[rank] < len(order.ranks[rank])]
        if stuck:
            stands = "; ".join(f"rank {rank} stands before {order.ranks[rank][self._at[rank]]}" for rank in stuck[:4])
            raise Deadlock(f"the order must let every rank reach its end, but {stands}")
        nodes = tuple(tuple(self._done[self._index(each)] for each in passes) for passes in order.passes)
        has_weights = any(each.work is Work.weights for each in order.passes[0])
        return _Graph(self._first, self._second, self._kinds, nodes, has_weights)

    def _index(self, each: Pass) -> int:
        work, stage, number = each
        return (work * self._stages + stage) * self._width + number

    def _add(self, first: int, second: int, kind: int) -> int:
        kinds = self._kinds
        self._first.append(first)
        self._second.append(second)
        kinds.append(kind)
        return len(kinds) - 1

    def _run(self, rank: int) -> None:
        """Let a rank go on until it waits."""
        order, done, over, waiting = self._order, self._done, self._over, self._waiting
        stages, width, owners, is_blocking = order.stages, order.micro_batches, order.owners, order.is_blocking
        add, places, instructions = self._add, self._places, order.ranks[rank]
        node = self._node[rank]
        for position in range(self._at[rank], len(instructions)):
            each = instructions[position]
            if isinstance(each, Exchange):
                self._at[rank], self._node[rank] = position, node
                if not self._exchange(rank, each):
                    return
                node = self._node[rank]
                continue
            work, stage, number = each
            index = (work * stages + stage) * width + number
            fed_from = stage - 1 if work is _FORWARD else stage + 1 if work is _BACKWARD else stages
            arrived = node
            if work is not _FORWARD and not done[index - stages * width]:
                # Its own forward pass, or the backward pass of its weights' gradient, which this rank has to do itself.
                break
            if 0 <= fed_from < stages:
                source = index + (fed_from - stage) * width
                if owners[fed_from] == rank or is_blocking:
                    if not (done if owners[fed_from] == rank else over)[source]:
                        break
                elif not done[source]:
                    waiting[source] = rank
                    break
                else:
                    arrived = add(done[source], done[source], places[3] + min(stage, fed_from))
            node = done[index] = add(node, arrived, places[work] + stage)
            if waiting[index] >= 0:
                self._wake(index)
        else:
            position = len(instructions)
        self._at[rank], self._node[rank] = position, node

    def _wake(self, index: int) -> None:
        if self._waiting[index] >= 0:
            self._runnable.append(self._waiting[index])
            self._waiting[index] = -1

    def _exchange(self, rank: int, each: Exchange) -> bool:
        """Note messages of which both ends are there; return False if one has only this end."""
        sends, receives = each
        over = self._over
        if not self._has_posted[rank]:
            if any(not self._done[self._index(one)] for one in sends):
                return False
            self._has_posted[rank] = True
            for one in sends:
                self._post(rank, one)
            for one in receives:
                self._post(rank, one)
        node = 0
        for one in (*sends, *receives):
            index = self._index(one)
            ended = over[index]
            if not ended:
                self._waiting[index] = rank
                return False
            node = self._add(node, ended, 0) if node else ended
        self._node[rank], self._has_posted[rank] = node, False
        return True

    def _post(self, rank: int, what: Pass) -> None:
        index = self._index(what)
        other = self._posted[index]
        if other is None:
            self._posted[index] = (rank, self._node[rank])
        elif other[0] != rank:
            boundary = what.stage if what.work is _FORWARD else what.stage - 1
            self._over[index] = self._add(other[1], self._node[rank], self._places[3] + boundary)
            self._wake(index)
