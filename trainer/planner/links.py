"""Seconds that exchanges between ranks take, by the links on their way. No torch.

Collectives are counted as rings: of S bytes each of n ranks sends S (n - 1) / n, twice for an all-reduce (Thakur,
Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005). Where a group spans
machines, each of its ranks on a machine has a network port of its own, over which its share of the bytes leaves (as
NCCL's rings do, one for each port); the rings inside a machine and between machines move at the same time, and the
slower one decides.

The tensor axis is innermost, then data, then pipe (`trainer.mesh`): ranks are numbered machine by machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.planner.cluster import Cluster
from trainer.planner.profile import Collective, Link, Profile

ROUNDS = {Collective.all_reduce: 2, Collective.all_gather: 1, Collective.reduce_scatter: 1, Collective.send: 1}
"""Times that a whole tensor goes once round the ring."""


@dataclass(frozen=True)
class Group:
    """Ranks that exchange something, and how they lie on machines."""

    ranks: int
    per_node: int
    """Most ranks of the group on one machine."""

    @property
    def nodes(self) -> int:
        """Machines that the group spans."""
        return -(-self.ranks // self.per_node)


@dataclass(frozen=True)
class Places:
    """Groups of a mesh on a cluster."""

    tensor: Group
    data: Group
    pipe: Group
    """A rank and its neighbour in the next stage."""
    ends: Group
    """The ranks of the first and the last stage that share a tied embedding."""


def places(pp: int, dp: int, tp: int, cluster: Cluster) -> Places:
    """Return where the groups of a mesh lie: rank = (stage x dp + replica) x tp + shard, machine by machine."""
    per_node, world = cluster.devices_per_node, pp * dp * tp
    alone = world <= per_node
    return Places(
        tensor=Group(tp, min(tp, per_node)),
        data=Group(dp, min(dp, max(1, per_node // tp))),
        # Some stages may have their neighbour on the same machine; the slowest boundary sets the pace.
        pipe=Group(2, 2 if alone else 1),
        ends=Group(2, 2 if alone or (pp - 1) * dp * tp < per_node else 1),
    )


class Wires:
    """The links of a cluster as a profile's software drives them."""

    def __init__(self, cluster: Cluster, profile: Profile, crowding: float = 1.0) -> None:
        """Keep both.

        Args:
            cluster: machines and the rates of their links.
            profile: shares of these rates that software reaches.
            crowding: ranks for each core where CPU ranks have to share one, otherwise 1. Copying takes a core.
        """
        self._cluster = cluster
        self._profile = profile
        self._crowding = crowding

    def seconds(self, kind: Collective, size: float, group: Group) -> float:
        """Return the time of one exchange.

        Args:
            kind: the exchange.
            size: bytes of the whole tensor: what is summed, gathered, or sent.
            group: who takes part.
        """
        if group.ranks < 2:
            return 0.0
        rounds = ROUNDS[kind]
        if group.nodes == 1:
            sent = size if kind is Collective.send else rounds * size * (group.ranks - 1) / group.ranks
            return self._inside(kind, sent, group.ranks)
        nodes, per_node = group.nodes, group.per_node
        if kind is Collective.send:
            return self._across(size, 2)
        out = rounds * size * (nodes - 1) / nodes / per_node
        inside = 0.0
        if per_node > 1:
            inside = self._inside(kind, rounds * size * (group.ranks - 1) / group.ranks, per_node)
        return max(self._across(out, nodes), inside)

    def host_seconds(self, size: float) -> float:
        """Return the time that bytes take between a device and the memory of its machine."""
        return _seconds(self._profile.host, self._cluster.host_link.value, size, 2) * self._crowding

    def _inside(self, kind: Collective, sent: float, ranks: int) -> float:
        link = self._profile.collectives.get(kind, self._profile.intra_node)
        return _seconds(link, self._cluster.intra_node.value, sent, ranks) * self._crowding

    def _across(self, sent: float, nodes: int) -> float:
        return _seconds(self._profile.inter_node, self._cluster.inter_node.value, sent, nodes) * self._crowding


def _seconds(link: Link, rate: float, sent: float, ranks: int) -> float:
    """Return the time of a link's own formula (`Link`), S / (S / (S + half)) written as S + half."""
    if sent <= 0:
        return 0.0
    rate = rate if link.rate is None else link.rate.value
    steady = (sent + link.half_bytes.value) / (link.efficiency.value * rate)
    if link.uncached_rate is not None:
        steady += max(0.0, sent - link.cached_bytes.value) / link.uncached_rate.value
    return link.latency_s.value + (ranks - 2) * link.hop_s.value + steady
