"""The part of the config schema that says on which machines a run is planned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Software(Enum):
    """Software whose buffers and overheads a plan counts: this product's, or a peer's, for comparing published runs."""

    trident = "trident"
    megatron = "megatron"
    deepspeed = "deepspeed"


@dataclass(frozen=True)
class ClusterConfig:
    """The machines that a run is planned for. They change no number of the run itself."""

    device: str | None = None
    """Name of the devices, as A100-80GB or H100 (docs/planner.md has the table). null: those of this machine."""
    nodes: int | None = None
    """Number of machines. null: as many as the layout needs."""
    devices_per_node: int | None = None
    """Devices of a machine. null: 8, or those of this machine if cluster.device is null."""
    intra_node_gbps: float | None = None
    """Gigabytes a second and direction that a device exchanges with others of its machine. null: the device's link."""
    inter_node_gbps: float | None = None
    """Gigabytes a second and direction that a device exchanges with other machines. null: 25 (one 200 Gbit/s port a
    device)."""
    host_gbps: float | None = None
    """Gigabytes a second and direction between a device and the memory of its machine. null: the device's bus."""
    memory_gib: float | None = None
    """Memory of a device that a run may use, in GiB. null: the device's."""
    host_memory_gib: float | None = None
    """Memory of a machine, in GiB, which offload uses. null: not checked."""
    usd_per_device_hour: float | None = None
    """Price of a device for an hour, in US dollars. null: no costs are shown."""
    watts: float | None = None
    """Power of a device in training, in watts. null: the device's."""
    pue: float = 1.1
    """Power of the data centre for each watt of the devices (power usage effectiveness)."""
    engine: Software = Software.trident
    """trident | megatron | deepspeed: which software's buffers and overheads are counted."""
    virtual_stages: int = 1
    """engine=megatron: model chunks of a pipeline rank (interleaved 1F1B)."""
