"""A cluster of A100s for tests that need one and do not ask how fast it is."""

from __future__ import annotations

from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant


def cluster(usd: float | None = None, watts: float = 400, pue: float = 1.1) -> Cluster:
    """Return 128 machines with 8 devices each."""

    def number(value: float) -> Constant:
        return Constant(value, "test")

    return Cluster(
        device="A100-80GB",
        nodes=128,
        devices_per_node=8,
        peak_flops={},
        memory_bandwidth=number(2e12),
        memory_bytes=number(79 << 30),
        intra_node=number(3e11),
        inter_node=number(2.5e10),
        host_link=number(3e10),
        watts=number(watts),
        usd_per_device_hour=None if usd is None else number(usd),
        pue=pue,
        host_memory_bytes=None,
        software=Software.trident,
        virtual_stages=1,
    )
