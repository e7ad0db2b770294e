"""Rules about the machines that a run is planned for. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.cluster_size import cluster_size, devices_per_node
from trainer.config.keys import joined
from trainer.config.rules_common import Case, Rule, divisors, neighbours, use
from trainer.config.schema import Dtype, Software
from trainer.devices import CPU, NAMES, find_device, is_processor, nearest_devices

_SUCH_AS = ("H100", "A100-80GB", "MI300X", "RTX-4090", CPU)
"""Devices that are named where none is near to what was written."""


def known_device(case: Case) -> Iterator[str]:
    """The device is in the table."""
    name = case.config.cluster.device
    if name is None or is_processor(name) or find_device(name) is not None:
        return
    near = nearest_devices(name)
    meant = (
        f"did you mean {joined(map(repr, near))}?"
        if near
        else f"use one of its {len(NAMES)} names, such as {joined(_SUCH_AS)}; trainer/devices.py has them all"
    )
    yield f"cluster.device must be in the table of devices, but is '{name}'; {meant}"


def number_format(case: Case) -> Iterator[str]:
    """The device has a unit for the format that is computed in."""
    name, dtype = case.config.cluster.device, case.config.precision.dtype
    device = None if name is None else find_device(name)
    if device is None or {Dtype.bf16: device.peak.bf16, Dtype.fp16: device.peak.fp16}.get(dtype, 1) is not None:
        return
    yield (
        f"precision.dtype={dtype.value} needs a device that computes in it, but cluster.device={device.name} has no "
        "unit for it; use precision=fp16, or another device"
    )


def memory_of_device(case: Case) -> Iterator[str]:
    """A run is not planned into memory that no such device has."""
    cluster = case.config.cluster
    device = None if cluster.device is None else find_device(cluster.device)
    # Boards with twice the usual memory are sold; more is a mistake.
    if device is not None and cluster.memory_gib is not None and 2 * device.memory.gb < cluster.memory_gib <= 4096:
        yield (
            f"cluster.memory_gib ({cluster.memory_gib:g}) must be at most what cluster.device={device.name} has, about "
            f"{device.memory.usable_gib:g}; leave it out for all that it has"
        )


def layout_fits(case: Case) -> Iterator[str]:
    """The cluster has a device for each rank of the layout."""
    layout, cluster = case.config.layout, case.config.cluster
    size = cluster_size(cluster)
    pp, tp, dp = layout.pipeline_parallel_size, layout.tensor_parallel_size, case.dp
    # Sizes below 1 are reported by `minima`.
    if size is None or size < 1 or pp * tp * dp <= size:
        return
    each = devices_per_node(cluster)
    replicas = size // (pp * tp)
    way = f"use layout.data_parallel_size={replicas}" if replicas else "use a smaller layout"
    yield (
        f"layout.pipeline_parallel_size ({pp}) x layout.tensor_parallel_size ({tp}) x layout.data_parallel_size "
        f"({dp}) = {pp * tp * dp} ranks must have a device each, but cluster.nodes ({cluster.nodes}) x "
        f"cluster.devices_per_node ({each}) = {size}; {way}, or more nodes"
    )


def virtual_stages(case: Case) -> Iterator[str]:
    """Interleaved stages are Megatron's, hold as many blocks each, and take turns in whole rounds of micro-batches."""
    layout, cluster, layers = case.config.layout, case.config.cluster, case.config.model.num_layers
    batch = case.config.batch
    count, rest = divmod(batch.global_batch_size, batch.micro_batch_size * case.dp)
    chunks, pp = cluster.virtual_stages, layout.pipeline_parallel_size
    if chunks <= 1:
        return
    if cluster.engine is not Software.megatron:
        yield (
            f"cluster.virtual_stages={chunks} has no effect with cluster.engine={cluster.engine.value}; "
            "use cluster.engine=megatron, or cluster.virtual_stages=1"
        )
        return
    if pp == 1:
        yield (
            f"cluster.virtual_stages={chunks} has no effect with layout.pipeline_parallel_size=1; "
            "use layout.pipeline_parallel_size >= 2, or cluster.virtual_stages=1"
        )
    elif not deals_out(layers, pp, chunks):
        legal = divisors(layers // pp) if layers % pp == 0 else [1]
        yield (
            f"model.num_layers ({layers}) must be divisible by layout.pipeline_parallel_size ({pp}) x "
            f"cluster.virtual_stages ({chunks}); {use(legal, chunks)} for cluster.virtual_stages"
        )
    elif not rest and count % pp:
        yield (
            f"cluster.virtual_stages={chunks} needs a number of micro-batches that is divisible by "
            f"layout.pipeline_parallel_size ({pp}), but batch.global_batch_size gives each replica {count}; "
            f"use batch.global_batch_size={joined(map(str, _sizes(case)))}, or cluster.virtual_stages=1"
        )


def deals_out(layers: int, pp: int, chunks: int) -> bool:
    """Return whether interleaved stages hold as many blocks each, or the first and the last may hold one fewer.

    Llama 3 405B has 126 blocks on 16 x 8 stages: the embedding and the head count as one each (arXiv 2407.21783,
    section 3.3.2).
    """
    return layers % (pp * chunks) == 0 or (layers + 2) % (pp * chunks) == 0


def _sizes(case: Case) -> list[int]:
    """Return the batch sizes near this one that give whole rounds of micro-batches."""
    batch, pp = case.config.batch, case.config.layout.pipeline_parallel_size
    return neighbours(batch.global_batch_size, batch.micro_batch_size * case.dp * pp)


RULES: tuple[Rule, ...] = (known_device, number_format, memory_of_device)
ARITHMETIC: tuple[Rule, ...] = (layout_fits, virtual_stages)
"""Rules that are asked only when every size is positive."""
