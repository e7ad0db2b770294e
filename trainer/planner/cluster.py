"""The machines of a plan, with every number resolved. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from trainer.config.cluster_size import cluster_size, devices_per_node, planned_world_size
from trainer.config.elastic import Elastic
from trainer.config.plan import data_parallel_size
from trainer.config.schema import ClusterConfig, DeviceKind, Dtype, Software, TridentConfig
from trainer.config.validate import fill_machine
from trainer.devices import CPU, Device, find_device, is_processor, of_driver
from trainer.errors import ConfigError
from trainer.hardware import Here
from trainer.planner.constants import Constant

GIB = 1 << 30


@dataclass(frozen=True)
class Cluster:
    """Devices, the links between them, and the software that they run. Made from `cluster.*` and the device table."""

    device: str
    """Name in the device table, or `CPU`."""
    nodes: int
    devices_per_node: int
    peak_flops: Mapping[Dtype, Constant]
    """Dense FLOP/s of GEMMs with fp32 accumulation; a format that the device lacks has no entry. CPU ranks: those of
    all cores of a machine, which its ranks share."""
    memory_bandwidth: Constant
    """Bytes a second of a device's own memory. CPU ranks: those of a machine, which its ranks share."""
    memory_bytes: Constant
    """Bytes of a device's memory that processes can use, the driver's own share taken off. CPU ranks: a rank's share of
    the machine's."""
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


CORE_GHZ = 2.5
"""Clock that is assumed of a processor that does not tell its own."""
_FLOPS_A_CYCLE: Mapping[Dtype, tuple[tuple[str, float], ...]] = {
    # Two units for multiply-add, each as wide as the instruction set's registers.
    Dtype.fp32: (("avx512f", 64), ("avx2", 32), ("asimd", 16), ("", 8)),
    Dtype.bf16: (("amx_bf16", 1024), ("avx512_bf16", 128), ("bf16", 64)),
    Dtype.fp16: (("amx_fp16", 1024), ("avx512_fp16", 128), ("asimdhp", 32)),
}
"""Format -> instruction set and FLOPs that a core does in a cycle with it; without one, those of fp32."""
_GUESS = "a guess; `trident plan --calibrate` measures it"
_GIVEN: Mapping[str, tuple[str, float]] = {
    "intra_node_gbps": ("intra_node", 1e9),
    "inter_node_gbps": ("inter_node", 1e9),
    "host_gbps": ("host_link", 1e9),
    "memory_gbps": ("memory_bandwidth", 1e9),
    "memory_gib": ("memory_bytes", GIB),
    "watts": ("watts", 1),
    "usd_per_device_hour": ("usd_per_device_hour", 1),
}
"""Key of the group -> field of the cluster that it replaces, and the size of its unit."""


def planned_ranks(config: TridentConfig, here: Here) -> int | None:
    """Return the ranks that a plan is for, as `validate` and `make_plan` take them.

    None, if the layout alone says it. Otherwise as many replicas as fill the cluster, where `cluster.nodes` says how
    large it is. With layout.data_parallel_size=auto at most as many as the batch allows; without a size of the cluster
    the GPUs of this machine, or its cores, are filled, as `trident train` does.

    Args:
        config: the config as composed.
        here: this machine.
    """
    cluster, layout = config.cluster, config.layout
    on_cpu = _is_cpu(config, here)
    devices = cluster_size(cluster)
    if devices is None and cluster.nodes is not None and not on_cpu:
        devices = cluster.nodes * len(here.gpus)
    if layout.data_parallel_size is not Elastic.auto:
        return planned_world_size(config, devices)
    room = devices or devices_per_node(cluster) or (here.cores if on_cpu else len(here.gpus))
    filled = fill_machine(config, 0 if on_cpu else room, room)
    return data_parallel_size(filled, None) * layout.pipeline_parallel_size * layout.tensor_parallel_size


def cluster_of(config: TridentConfig, ranks: int, here: Here) -> Cluster:
    """Return the machines that a run is planned for, every number resolved.

    Args:
        config: accepted by `validate`.
        ranks: ranks of the run; they decide the number of machines where nobody says it.
        here: this machine, which counts where `cluster.device` is null, and for CPU ranks.

    Raises:
        ConfigError: this machine's GPUs are not in the table, a device has no unit for the run's format, the run is to
            compute on another kind of device, or there are fewer devices than ranks.
    """
    cluster, dtype = config.cluster, config.precision.dtype
    found = _of_processors(cluster, ranks, here) if _is_cpu(config, here) else _of_gpus(cluster, ranks, here)
    given = {
        name: Constant(unit * value, f"given as cluster.{key}")
        for key, (name, unit) in _GIVEN.items()
        if (value := getattr(cluster, key)) is not None
    }
    found = replace(found, **given)  # type: ignore[arg-type]
    if dtype not in found.peak_flops:
        raise ConfigError(
            f"precision.dtype={dtype.value} needs a device that computes in it, but {found.device} has no unit for it; "
            "use precision=fp16, or another device"
        )
    if cluster.peak_tflops is not None:
        peak = Constant(1e12 * cluster.peak_tflops, "given as cluster.peak_tflops")
        found = replace(found, peak_flops={**found.peak_flops, dtype: peak})
    if ranks > found.size:
        raise ConfigError(
            f"a layout of {ranks} ranks must have a device each, but the cluster has {found.nodes} x "
            f"{found.devices_per_node} = {found.size}; use a smaller layout, or set cluster.nodes"
        )
    return found


def _is_cpu(config: TridentConfig, here: Here) -> bool:
    name, kind = config.cluster.device, config.runtime.device
    if name is None:
        return kind is DeviceKind.cpu or (kind is DeviceKind.auto and not here.gpus)
    on_cpu = is_processor(name)
    if kind is not DeviceKind.auto and on_cpu is not (kind is DeviceKind.cpu):
        raise ConfigError(
            f"a plan for runtime.device={kind.value} needs such a device, but cluster.device is {name}; "
            "use runtime.device=auto, or another cluster"
        )
    return on_cpu


def _of_gpus(cluster: ClusterConfig, ranks: int, here: Here) -> Cluster:
    device, memory, host = _device_here(here) if cluster.device is None else _device_named(cluster.device)
    if cluster.host_memory_gib is not None:
        host = Constant(GIB * cluster.host_memory_gib, "given as cluster.host_memory_gib")
    each = devices_per_node(cluster) or len(here.gpus)
    peaks = {Dtype.bf16: device.peak.bf16, Dtype.fp16: device.peak.fp16, Dtype.fp32: device.peak.fp32}
    return Cluster(
        device=device.name,
        nodes=cluster.nodes or math.ceil(ranks / each),
        devices_per_node=each,
        peak_flops={
            dtype: _sheet(device, "peak", 1e12 * tflops) for dtype, tflops in peaks.items() if tflops is not None
        },
        memory_bandwidth=_sheet(device, "memory", 1e9 * device.memory.gb_s),
        memory_bytes=memory,
        intra_node=_sheet(device, "link", 1e9 * device.link.gb_s),
        inter_node=Constant(25e9, "assumed: a 200 Gbit/s port for each device"),
        host_link=_sheet(device, "bus", 1e9 * device.bus.gb_s),
        watts=_sheet(device, "watts", device.watts),
        usd_per_device_hour=None,
        pue=cluster.pue,
        host_memory_bytes=host,
        software=cluster.engine,
        virtual_stages=cluster.virtual_stages,
    )


def _sheet(device: Device, part: str, value: float) -> Constant:
    return Constant(value, f"{device.name}: {device.source(part)}")


def _usable(device: Device) -> Constant:
    return _sheet(device, "memory", GIB * device.memory.usable_gib)


def _device_named(name: str) -> tuple[Device, Constant, Constant | None]:
    """Return a device, its memory, and nothing about the machine that it is in."""
    device = find_device(name)
    assert device is not None, "validate refuses a device that is not in the table"
    return device, _usable(device), None


def _device_here(here: Here) -> tuple[Device, Constant, Constant | None]:
    """Return the kind of this machine's GPUs, the memory of the smallest, and that of the machine."""
    if not here.gpus:
        raise ConfigError("runtime.device=cuda needs a GPU to plan for, but this machine has none; set cluster.device")
    names = sorted({gpu.name for gpu in here.gpus})
    if len(names) > 1:
        raise ConfigError(
            f"cluster.device must be set on a machine with several kinds of GPUs ({', '.join(map(repr, names))}), "
            "because a plan is for one kind"
        )
    device = of_driver(names[0])
    if device is None:
        unknown = f"this machine's GPU, '{names[0]}', is not in the table"
        raise ConfigError(
            f"cluster.device must be set, because {unknown if names[0] else 'nvidia-smi does not name the GPUs here'}; "
            "take a near one, with cluster.peak_tflops, cluster.memory_gbps and cluster.memory_gib of yours"
        )
    host = None if here.memory_bytes is None else Constant(here.memory_bytes, "this machine")
    sizes = [gpu.memory_bytes for gpu in here.gpus if gpu.memory_bytes is not None]
    if not sizes:
        return device, _usable(device), host
    return device, Constant(min(sizes), "nvidia-smi on this machine: all but what the driver keeps"), host


def _of_processors(cluster: ClusterConfig, ranks: int, here: Here) -> Cluster:
    """Return machines like this one whose ranks share the cores: rates are a machine's, memory is a rank's share."""
    cores = here.cores
    each = cluster.devices_per_node or math.ceil(ranks / (cluster.nodes or 1))
    # Where there is room for more, only those that run share the machine.
    sharing = min(each, ranks)
    told = f"{sharing} {'rank' if sharing == 1 else 'ranks'} of a machine"
    if cluster.host_memory_gib is not None:
        host = Constant(GIB * cluster.host_memory_gib, "given as cluster.host_memory_gib")
    elif here.memory_bytes is not None:
        host = Constant(here.memory_bytes, "this machine")
    else:
        raise ConfigError("cluster.host_memory_gib must be set, because this machine does not tell its memory")
    bandwidth = Constant(min(10e9 * cores, 300e9), f"10 GB/s a core, at most 300 GB/s: {_GUESS}")
    return Cluster(
        device=CPU,
        nodes=cluster.nodes or math.ceil(ranks / each),
        devices_per_node=each,
        peak_flops={dtype: processor_flops(here, dtype) for dtype in Dtype},
        memory_bandwidth=bandwidth,
        memory_bytes=Constant(host.value / sharing, f"memory of a machine ({host.source}), over {told}"),
        intra_node=Constant(8e9, f"8 GB/s over sockets of one machine: {_GUESS}"),
        inter_node=Constant(1.25e9 / sharing, f"assumed: a 10 Gbit/s port for {told}"),
        host_link=bandwidth,
        watts=Constant(5.0 * cores / sharing, f"a guess: 5 W for each of {cores} cores, over {told}"),
        usd_per_device_hour=None,
        pue=cluster.pue,
        host_memory_bytes=host,
        software=cluster.engine,
        virtual_stages=cluster.virtual_stages,
        cores_per_node=cores,
    )


def processor_flops(here: Here, dtype: Dtype) -> Constant:
    """Return the FLOP/s of all cores of this machine, guessed from instruction sets and clock."""
    known = here.processor
    sets = (*_FLOPS_A_CYCLE[dtype], *_FLOPS_A_CYCLE[Dtype.fp32])
    name, a_cycle = next(row for row in sets if row[0] in known.flags or not row[0])
    cores, ghz = here.cores / known.threads_per_core, known.ghz or CORE_GHZ
    told = f"{cores:g} cores x {ghz:g} GHz x {a_cycle:g} FLOPs a cycle" + f" ({name})" * bool(name)
    return Constant(1e9 * cores * ghz * a_cycle, f"{told}: {_GUESS}")
