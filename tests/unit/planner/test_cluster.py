"""A cluster with every number resolved: from the table, from this machine, or as the config gives it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.config.compose import compose
from trainer.config.schema import Dtype, Software
from trainer.errors import ConfigError
from trainer.hardware import Gpu, Here, Processor
from trainer.planner.cluster import Cluster, cluster_of, planned_ranks, processor_flops

GIB = 1 << 30
SERVER = Here((), 64, 256 * GIB, Processor(frozenset({"avx2", "avx512f", "avx512_bf16"}), 2.5, 2.0))
H100S = replace(SERVER, gpus=(Gpu("NVIDIA H100 80GB HBM3", 79 * GIB),) * 4)


def resolved(*words: str, ranks: int = 1, here: Here = SERVER) -> Cluster:
    return cluster_of(compose(words), ranks, here)


def test_a_named_device_brings_the_figures_of_its_row() -> None:
    cluster = resolved("cluster=a100_80gb", ranks=12)
    assert (cluster.device, cluster.nodes, cluster.devices_per_node, cluster.size) == ("A100-80GB", 2, 8, 16)
    assert {dtype: peak.value for dtype, peak in cluster.peak_flops.items()} == {
        Dtype.bf16: 311.9e12,
        Dtype.fp16: 311.9e12,
        Dtype.fp32: 19.5e12,
    }
    assert cluster.memory_bandwidth.value == 2039e9
    assert cluster.memory_bytes.value == 79.1 * GIB
    assert (cluster.intra_node.value, cluster.inter_node.value, cluster.host_link.value) == (300e9, 25e9, 31e9)
    assert (cluster.watts.value, cluster.pue, cluster.usd_per_device_hour) == (400, 1.1, None)
    assert (cluster.host_memory_bytes, cluster.cores_per_node, cluster.is_cpu) == (None, None, False)
    assert (cluster.software, cluster.virtual_stages) == (Software.trident, 1)


def test_every_number_says_where_it_comes_from() -> None:
    cluster = resolved("cluster=v100", "cluster.watts=250", "cluster.host_gbps=12")
    assert set(cluster.peak_flops) == {Dtype.fp16, Dtype.fp32}
    assert (cluster.watts.value, cluster.watts.source) == (250, "given as cluster.watts")
    assert (cluster.host_link.value, cluster.host_link.source) == (12e9, "given as cluster.host_gbps")
    assert cluster.intra_node.source.startswith("V100-32GB: ")
    assert all(peak.source.startswith("V100-32GB: ") for peak in cluster.peak_flops.values())


def test_what_the_config_gives_wins() -> None:
    given = {
        "intra_node_gbps": 100,
        "inter_node_gbps": 6.25,
        "memory_gbps": 1000,
        "memory_gib": 70,
        "host_memory_gib": 512,
        "usd_per_device_hour": 2.5,
        "peak_tflops": 300,
    }
    cluster = resolved(
        "precision=bf16", "cluster.device=A100", *(f"cluster.{key}={value}" for key, value in given.items())
    )
    assert cluster.usd_per_device_hour is not None
    assert cluster.host_memory_bytes is not None
    assert (cluster.intra_node.value, cluster.inter_node.value, cluster.memory_bandwidth.value) == (1e11, 6.25e9, 1e12)
    assert (cluster.memory_bytes.value, cluster.host_memory_bytes.value) == (70 * GIB, 512 * GIB)
    assert cluster.usd_per_device_hour.value == 2.5
    # A peak is that of the run's format; others keep the table's.
    assert (cluster.peak_flops[Dtype.bf16].value, cluster.peak_flops[Dtype.fp16].value) == (300e12, 311.9e12)


@pytest.mark.parametrize(
    ("words", "ranks", "shape"),
    [
        (["cluster.device=H100"], 1, (1, 8)),
        (["cluster.device=H100"], 9, (2, 8)),
        (["cluster.device=H100", "cluster.devices_per_node=4"], 9, (3, 4)),
        (["cluster.device=H100", "cluster.nodes=4"], 9, (4, 8)),
        (["cluster=gb200"], 128, (2, 72)),
        (["cluster.device=T4"], 4, (1, 4)),
    ],
)
def test_machines(words: list[str], ranks: int, shape: tuple[int, int]) -> None:
    cluster = resolved(*words, ranks=ranks)
    assert (cluster.nodes, cluster.devices_per_node) == shape


def test_this_machine_s_gpus() -> None:
    cluster = resolved(here=H100S, ranks=4)
    assert (cluster.device, cluster.nodes, cluster.devices_per_node) == ("H100", 1, 4)
    assert cluster.memory_bytes.value == 79 * GIB
    assert cluster.memory_bytes.source.startswith("nvidia-smi")
    assert cluster.host_memory_bytes is not None
    assert cluster.host_memory_bytes.value == 256 * GIB


def test_gpus_that_do_not_tell_their_memory_have_the_table_s() -> None:
    cluster = resolved(here=replace(SERVER, gpus=(Gpu("NVIDIA H100 PCIe"),)))
    assert (cluster.device, cluster.memory_bytes.value) == ("H100-PCIe", 79.1 * GIB)


@pytest.mark.parametrize(
    ("gpus", "problem"),
    [
        (("NVIDIA GeForce RTX 2080 Ti",), "this machine's GPU, 'NVIDIA GeForce RTX 2080 Ti', is not in the table"),
        (("",), "because nvidia-smi does not name the GPUs here"),
        (("NVIDIA L4", "NVIDIA A10"), "several kinds of GPUs ('NVIDIA A10', 'NVIDIA L4')"),
    ],
)
def test_gpus_of_this_machine_that_say_nothing(gpus: tuple[str, ...], problem: str) -> None:
    here = replace(SERVER, gpus=tuple(map(Gpu, gpus)))
    with pytest.raises(ConfigError, match=r"cluster\.device must be set") as caught:
        resolved(here=here)
    assert problem in str(caught.value)
    assert resolved("cluster.device=H100", here=here).device == "H100"
    assert resolved("runtime.device=cpu", here=here).device == "CPU"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["cluster=h100", "runtime=cpu"], r"runtime\.device=cpu needs such a device, but cluster\.device is H100"),
        (["cluster=cpu", "runtime=cuda"], r"runtime\.device=cuda needs such a device, but cluster\.device is CPU"),
    ],
)
def test_a_plan_for_another_kind_of_device(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        resolved(*words)


def test_a_format_that_this_machine_s_gpu_lacks() -> None:
    here = replace(SERVER, gpus=(Gpu("Tesla T4"),))
    with pytest.raises(ConfigError, match=r"precision\.dtype=bf16 .* but T4 has no unit for it; use precision=fp16"):
        resolved("precision=bf16", here=here)
    assert resolved("precision=fp16", here=here).peak_flops[Dtype.fp16].value == 65e12


def test_a_gpu_is_asked_for_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match=r"this machine has none; set cluster\.device"):
        resolved("runtime.device=cuda")


@pytest.mark.parametrize(
    ("words", "here"),
    [([], SERVER), (["cluster=cpu"], SERVER), (["cluster=cpu"], H100S), (["runtime.device=cpu"], H100S)],
)
def test_cpu_ranks_share_a_machine(words: list[str], here: Here) -> None:
    cluster = resolved(*words, here=here, ranks=4)
    assert (cluster.device, cluster.nodes, cluster.devices_per_node) == ("CPU", 1, 4)
    assert (cluster.is_cpu, cluster.cores_per_node) == (True, 64)
    # Rates are a machine's, which the time model divides; memory is a rank's share.
    assert cluster.memory_bytes.value == 64 * GIB
    assert cluster.host_memory_bytes is not None
    assert cluster.host_memory_bytes.value == 256 * GIB
    assert cluster.memory_bandwidth.value == 300e9
    assert 4 * cluster.watts.value == 5 * 64
    assert all("guess" in constant.source for constant in (*cluster.peak_flops.values(), cluster.memory_bandwidth))


def test_only_ranks_that_run_share_a_cpu() -> None:
    cluster = resolved("cluster=cpu", "cluster.devices_per_node=8", ranks=2)
    assert (cluster.devices_per_node, cluster.memory_bytes.value) == (8, 128 * GIB)


def test_cpu_ranks_on_several_machines() -> None:
    cluster = resolved("cluster=cpu", "cluster.nodes=2", ranks=6)
    assert (cluster.nodes, cluster.devices_per_node, cluster.inter_node.value) == (2, 3, 1.25e9 / 3)
    assert resolved("cluster=cpu", "cluster.devices_per_node=2", ranks=6).nodes == 3


def test_a_cpu_s_peak_is_counted_from_its_instructions() -> None:
    # 32 cores behind 64 threads, 2.5 GHz, two 512-bit units for multiply-add: 64 FLOPs a cycle in fp32.
    assert processor_flops(SERVER, Dtype.fp32).value == 32 * 2.5e9 * 64
    assert processor_flops(SERVER, Dtype.bf16).value == 32 * 2.5e9 * 128
    # Without a unit for it, a format is computed as fp32 is.
    assert processor_flops(SERVER, Dtype.fp16).value == 32 * 2.5e9 * 64
    assert processor_flops(Here(cores=2), Dtype.bf16).value == 2 * 2.5e9 * 8
    assert "avx512_bf16" in processor_flops(SERVER, Dtype.bf16).source


def test_a_cpu_may_be_told_its_peak() -> None:
    cluster = resolved(
        "cluster=cpu", "cluster.peak_tflops=3", "cluster.memory_gbps=100", "cluster.memory_gib=8", ranks=2
    )
    assert cluster.peak_flops[Dtype.fp32].value == 3e12
    assert (cluster.memory_bandwidth.value, cluster.memory_bytes.value) == (100e9, 8 * GIB)


def test_a_machine_that_hides_its_memory() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.host_memory_gib must be set"):
        resolved(here=Here(cores=2))
    assert resolved("cluster.host_memory_gib=8", here=Here(cores=2), ranks=2).memory_bytes.value == 4 * GIB


def test_more_ranks_than_devices() -> None:
    with pytest.raises(
        ConfigError, match=r"a layout of 8 ranks must have a device each, but the cluster has 1 x 4 = 4"
    ):
        resolved("cluster.nodes=1", here=H100S, ranks=8)


@pytest.mark.parametrize(
    ("words", "here", "ranks"),
    [
        ([], SERVER, None),
        ([], H100S, None),
        (["cluster.device=H100", "cluster.nodes=2"], SERVER, 16),
        (["cluster.device=H100", "cluster.nodes=2", "layout=tp2_pp3"], SERVER, 12),
        (["cluster.device=H100", "cluster.nodes=2", "layout=tp2_dp2"], SERVER, None),
        (["cluster.nodes=2"], H100S, 8),
        (["cluster.nodes=2"], SERVER, None),
        (["layout.data_parallel_size=auto"], H100S, 4),
        (["layout.data_parallel_size=auto"], replace(SERVER, cores=2), 2),
        # Sixteen sequences a step: twenty-four GPUs make sixteen replicas.
        (["layout.data_parallel_size=auto", "cluster.device=H100", "cluster.nodes=3"], SERVER, 16),
        (["layout.data_parallel_size=auto", "layout=tp2", "cluster.device=H100", "cluster.nodes=1"], SERVER, 8),
    ],
)
def test_ranks_to_plan(words: list[str], here: Here, ranks: int | None) -> None:
    assert planned_ranks(compose(words), here) == ranks
