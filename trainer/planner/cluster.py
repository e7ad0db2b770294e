"""The machines of a plan, with every number resolved. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.schema import Dtype
from trainer.config.schema_cluster import Software
from trainer.planner.constants import Constant


@dataclass(frozen=True)
class Cluster:
    """Devices, the links between them, and the software that they run. Made from `cluster.*` and the device table."""

    device: str
    """Name in the device table, or `CPU`."""
    nodes: int
    devices_per_node: int
    peak_flops: Mapping[Dtype, Constant]
    """Dense FLOP/s of GEMMs with fp32 accumulation; a format that the device lacks has no entry."""
    memory_bandwidth: Constant
    """Bytes a second of a device's own memory."""
    memory_bytes: Constant
    """Bytes of a device's memory that processes can use, the driver's own share taken off."""
    intra_node: Constant
    """Bytes a second and direction that a device exchanges with others of its machine."""
    inter_node: Constant
    """Bytes a second and direction that a device exchanges with other machines."""
    host_link: Constant
    """Bytes a second and direction between a device and the memory of its machine."""
    watts: Constant
    usd_per_device_hour: Constant | None
    pue: float
    host_memory_bytes: Constant | None
    """Memory of a machine; None: it is not known, and offload is not checked against it."""
    software: Software
    virtual_stages: int
    """Model chunks of a pipeline rank (interleaved 1F1B, Megatron only)."""
    cores_per_node: int | None = None
    """CPU ranks: cores of a machine, which its ranks share; None for GPUs."""

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.nodes * self.devices_per_node

    @property
    def is_cpu(self) -> bool:
        """True if ranks compute on CPU cores."""
        return self.cores_per_node is not None
