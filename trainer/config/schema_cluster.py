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
    """Name of the devices, such as A100-80GB, H100 or CPU; trainer/devices.py has the table. null: those of this
    machine."""
    nodes: int | None = None
    """Number of machines. null: as many as the layout needs. With a number, and layout.data_parallel_size=null, a plan
    has as many replicas as fill them."""
    devices_per_node: int | None = None
    """Devices of a machine. null: the usual number of such a device (8 for most), or those of this machine if
    cluster.device is null. CPU: ranks of a machine, which share its cores."""
    intra_node_gbps: float | None = None
    """Gigabytes a second and direction that a device exchanges with others of its machine. null: the device's link."""
    inter_node_gbps: float | None = None
    """Gigabytes a second and direction that a device exchanges with other machines. null: 25 (one 200 Gbit/s port a
    device); CPU: 1.25 (one 10 Gbit/s port) shared by the ranks of a machine."""
    host_gbps: float | None = None
    """Gigabytes a second and direction between a device and the memory of its machine. null: the device's bus."""
    peak_tflops: float | None = None
    """Dense TFLOP/s of a device in precision.dtype, for a variant that the table lacks. null: the table's. CPU: that of
    all cores of a machine; null: guessed from its instruction sets."""
    memory_gbps: float | None = None
    """Gigabytes a second of a device's own memory, for a variant that the table lacks. null: the table's. CPU: that of
    a machine; null: a guess by its cores."""
    memory_gib: float | None = None
    """Memory of a device that a run may use, in GiB. null: the device's. CPU: that of a rank; null: an equal share of
    the machine's."""
    host_memory_gib: float | None = None
    """Memory of a machine, in GiB, which offload and CPU ranks use. null: that of this machine if cluster.device is
    null or CPU; otherwise it is not checked."""
    usd_per_device_hour: float | None = None
    """Price of a device for an hour, in US dollars. null: no costs are shown."""
    watts: float | None = None
    """Power of a device in training, in watts. null: the largest that it is made for."""
    pue: float = 1.1
    """Power of the data centre for each watt of the devices (power usage effectiveness). 1.1 is what the energy of
    LLaMA's training was computed with (arXiv 2302.13971, section 6)."""
    engine: Software = Software.trident
    """trident | megatron | deepspeed: which software's buffers and overheads are counted."""
    virtual_stages: int = 1
    """engine=megatron: model chunks of a pipeline rank (interleaved 1F1B)."""
