"""The number of devices that a plan is for, as far as the config says it. No torch."""

from __future__ import annotations

from trainer.config.schema import ClusterConfig, TridentConfig
from trainer.devices import find_device, is_processor


def devices_per_node(cluster: ClusterConfig) -> int | None:
    """Return the devices of a machine; None if this machine decides, or on a CPU the layout."""
    if cluster.devices_per_node is not None or cluster.device is None or is_processor(cluster.device):
        return cluster.devices_per_node
    device = find_device(cluster.device)
    return None if device is None else device.per_node


def cluster_size(cluster: ClusterConfig) -> int | None:
    """Return the number of devices; None if the layout decides it."""
    each = devices_per_node(cluster)
    return None if cluster.nodes is None or each is None else cluster.nodes * each


def planned_world_size(config: TridentConfig, devices: int | None) -> int | None:
    """Return the ranks to plan: those that fill the devices with whole replicas.

    None, if the layout alone decides, because it gives the number of replicas or nobody says how many devices there
    are. At least one replica is planned, so that a layout which is larger than the cluster is judged as it is.

    Args:
        config: the config as composed.
        devices: number of devices of the cluster, as `cluster_size` or this machine says; None if it is open.
    """
    layout = config.layout
    if devices is None or isinstance(layout.data_parallel_size, int):
        return None
    of_a_replica = max(1, layout.pipeline_parallel_size * layout.tensor_parallel_size)
    return of_a_replica * max(1, devices // of_a_replica)
