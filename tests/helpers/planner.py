"""Clusters for tests of the planner, made without Hydra."""

from __future__ import annotations

from trainer.config.schema import Dtype
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant


def cluster_of(software: Software, memory_bytes: float = 80e9, cores: int | None = None) -> Cluster:
    """Return eight devices of a machine, of made-up speed; with `cores` they are ranks of a CPU."""

    def made_up(value: float) -> Constant:
        return Constant(value, "made up")

    return Cluster(
        device="CPU" if cores else "A100-80GB",
        nodes=1,
        devices_per_node=8,
        peak_flops={dtype: made_up(1e12) for dtype in Dtype},
        memory_bandwidth=made_up(1e11),
        memory_bytes=made_up(memory_bytes),
        intra_node=made_up(1e10),
        inter_node=made_up(1e9),
        host_link=made_up(1e10),
        watts=made_up(100.0),
        usd_per_device_hour=None,
        pue=1.0,
        host_memory_bytes=None,
        software=software,
        virtual_stages=1,
        cores_per_node=cores,
    )


def cpu_cluster(cores: int) -> Cluster:
    """Return this product on ranks of a CPU."""
    return cluster_of(Software.trident, cores=cores)
