# ruff: noqa: E501 - messages are compared whole
"""The `cluster` group: its rules with their exact text, its files, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.cluster_size import cluster_size, planned_world_size
from trainer.config.compose import compose, from_yaml, options, to_yaml
from trainer.config.key_text import type_of
from trainer.config.keys import build
from trainer.config.schema import ClusterConfig
from trainer.config.validate import problems
from trainer.devices import NAMES, find_device, is_processor
from trainer.errors import ConfigError
from trainer.run_folder import may_change

BASE: dict[str, object] = {
    "model.hidden_size": 48,
    "model.num_layers": 4,
    "model.num_attention_heads": 12,
    "name": "x",
    "run_dir": "runs/x",
}
HUGE = {"layout.data_parallel_size": 16, "batch.global_batch_size": 16}

Case = tuple[dict[str, object], list[str]]

DEVICE: list[Case] = [
    (
        {"cluster.device": "H10"},
        ["cluster.device must be in the table of devices, but is 'H10'; did you mean 'H100', 'H20' or 'A10'?"],
    ),
    (
        {"cluster.device": "V100-16GB", "precision.dtype": "bf16"},
        ["precision.dtype=bf16 needs a device that computes in it, but cluster.device=V100-16GB has no unit for it; use precision=fp16, or another device"],
    ),
    (
        {"cluster.device": "t4", "precision.dtype": "bf16"},
        ["precision.dtype=bf16 needs a device that computes in it, but cluster.device=T4 has no unit for it; use precision=fp16, or another device"],
    ),
    ({"cluster.device": "P100", "precision.dtype": "fp16"}, []),
    ({"cluster.device": "V100", "precision.dtype": "fp32"}, []),
    ({"cluster.device": "CPU", "precision.dtype": "bf16"}, []),
    ({"precision.dtype": "bf16"}, []),
    (
        {"cluster.device": "A100", "cluster.memory_gib": 800},
        ["cluster.memory_gib (800) must be at most what cluster.device=A100-80GB has, about 79.1; leave it out for all that it has"],
    ),
    ({"cluster.device": "RTX-4090", "cluster.memory_gib": 47.5}, []),
    # A short try on CPU cores may name the machines that the run is meant for.
    ({"cluster.device": "H100", "runtime.device": "cpu"}, []),
    ({"cluster.device": "cpu", "runtime.device": "cpu"}, []),
]  # fmt: skip

NUMBERS: list[Case] = [
    ({"cluster.nodes": 0}, ["cluster.nodes must be at least 1, but is 0"]),
    ({"cluster.nodes": 10**6}, ["cluster.nodes must be 1 to 100000, but is 1000000"]),
    ({"cluster.devices_per_node": -8}, ["cluster.devices_per_node must be at least 1, but is -8"]),
    ({"cluster.devices_per_node": 4096}, ["cluster.devices_per_node must be 1 to 1024, but is 4096"]),
    ({"cluster.intra_node_gbps": 0}, ["cluster.intra_node_gbps must be 0.001 to 20000, but is 0.0"]),
    ({"cluster.intra_node_gbps": 300e9}, ["cluster.intra_node_gbps must be 0.001 to 20000, but is 300000000000.0"]),
    ({"cluster.inter_node_gbps": float("nan")}, ["cluster.inter_node_gbps must be 0.001 to 20000, but is nan"]),
    ({"cluster.host_gbps": float("inf")}, ["cluster.host_gbps must be 0.001 to 20000, but is inf"]),
    ({"cluster.peak_tflops": -1}, ["cluster.peak_tflops must be 0.001 to 100000, but is -1.0"]),
    ({"cluster.memory_gbps": 0}, ["cluster.memory_gbps must be 0.001 to 100000, but is 0.0"]),
    ({"cluster.memory_gib": 5000}, ["cluster.memory_gib must be 0.001 to 4096, but is 5000.0"]),
    ({"cluster.host_memory_gib": -2}, ["cluster.host_memory_gib must be 0.001 to 131072, but is -2.0"]),
    ({"cluster.usd_per_device_hour": -1.5}, ["cluster.usd_per_device_hour must be 0.001 to 1000, but is -1.5"]),
    ({"cluster.usd_per_device_hour": 1e-300}, ["cluster.usd_per_device_hour must be 0.001 to 1000, but is 1e-300"]),
    ({"cluster.host_gbps": 1e-300}, ["cluster.host_gbps must be 0.001 to 20000, but is 1e-300"]),
    ({"cluster.watts": 70000}, ["cluster.watts must be 0.001 to 5000, but is 70000.0"]),
    ({"cluster.pue": 0.9}, ["cluster.pue must be 1 to 5, but is 0.9"]),
    ({"cluster.virtual_stages": 0}, ["cluster.virtual_stages must be at least 1, but is 0"]),
]  # fmt: skip

SIZE: list[Case] = [
    (
        {"cluster.nodes": 1, "cluster.devices_per_node": 8, **HUGE},
        ["layout.pipeline_parallel_size (1) x layout.tensor_parallel_size (1) x layout.data_parallel_size (16) = 16 ranks must have a device each, but cluster.nodes (1) x cluster.devices_per_node (8) = 8; use layout.data_parallel_size=8, or more nodes"],
    ),
    (
        {"cluster.nodes": 1, "cluster.device": "T4", "layout.pipeline_parallel_size": 4, "layout.tensor_parallel_size": 2},
        ["layout.pipeline_parallel_size (4) x layout.tensor_parallel_size (2) x layout.data_parallel_size (1) = 8 ranks must have a device each, but cluster.nodes (1) x cluster.devices_per_node (4) = 4; use a smaller layout, or more nodes"],
    ),
    ({"cluster.nodes": 2, "cluster.devices_per_node": 8, **HUGE}, []),
    ({"cluster.devices_per_node": 8, **HUGE}, []),
    ({"cluster.nodes": 1, **HUGE}, []),
    ({"cluster.nodes": 0, "cluster.devices_per_node": 8, **HUGE}, ["cluster.nodes must be at least 1, but is 0"]),
    (
        {"cluster.virtual_stages": 2},
        ["cluster.virtual_stages=2 has no effect with cluster.engine=trident; use cluster.engine=megatron, or cluster.virtual_stages=1"],
    ),
    (
        {"cluster.virtual_stages": 2, "cluster.engine": "megatron"},
        ["cluster.virtual_stages=2 has no effect with layout.pipeline_parallel_size=1; use layout.pipeline_parallel_size >= 2, or cluster.virtual_stages=1"],
    ),
    (
        {"cluster.virtual_stages": 4, "cluster.engine": "megatron", "layout.pipeline_parallel_size": 2},
        ["model.num_layers (4) must be divisible by layout.pipeline_parallel_size (2) x cluster.virtual_stages (4); use 1 or 2 for cluster.virtual_stages"],
    ),
    ({"cluster.virtual_stages": 2, "cluster.engine": "megatron", "layout.pipeline_parallel_size": 2}, []),
    (
        {"cluster.virtual_stages": 2, "cluster.engine": "megatron", "layout.pipeline_parallel_size": 2, "batch.global_batch_size": 3},
        ["cluster.virtual_stages=2 needs a number of micro-batches that is divisible by layout.pipeline_parallel_size (2), but batch.global_batch_size gives each replica 3; use batch.global_batch_size=2 or 4, or cluster.virtual_stages=1"],
    ),
    # Llama 3 405B: the embedding and the head count as a block each.
    ({"cluster.virtual_stages": 8, "cluster.engine": "megatron", "layout.pipeline_parallel_size": 16, "model.num_layers": 126}, []),
    ({"zero.stage": 0, "precision.dtype": "fp16", "cluster.engine": "megatron"}, []),
    ({"zero.stage": 3, "layout.pipeline_parallel_size": 2, "cluster.engine": "deepspeed"}, []),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "expected"), [*DEVICE, *NUMBERS, *SIZE])
def test_rule(changed: dict[str, object], expected: list[str]) -> None:
    assert problems(build({**BASE, **changed})) == expected


def test_an_unknown_device_that_is_near_to_none_shows_a_few_and_where_all_are() -> None:
    assert problems(build({**BASE, "cluster.device": "potato"})) == [
        f"cluster.device must be in the table of devices, but is 'potato'; use one of its {len(NAMES)} names, such as "
        "H100, A100-80GB, MI300X, RTX-4090 or CPU; trainer/devices.py has them all"
    ]
    assert all(is_processor(name) or find_device(name) for name in ("H100", "A100-80GB", "MI300X", "RTX-4090", "CPU"))


@pytest.mark.parametrize("name", options()["cluster"])
def test_a_shipped_file_names_a_device_of_the_table(name: str) -> None:
    cluster = compose([f"cluster={name}"]).cluster
    assert cluster.device is None or is_processor(cluster.device) or find_device(cluster.device) is not None
    assert cluster.nodes is None
    assert cluster.usd_per_device_hour is None


@pytest.mark.parametrize(
    ("cluster", "size"),
    [
        (ClusterConfig(), None),
        (ClusterConfig(nodes=4), None),
        (ClusterConfig(devices_per_node=8), None),
        (ClusterConfig(nodes=4, devices_per_node=8), 32),
        (ClusterConfig(nodes=4, device="H100"), 32),
        (ClusterConfig(nodes=4, device="GB200"), 16),
        (ClusterConfig(nodes=4, device="CPU"), None),
        (ClusterConfig(nodes=4, device="no such"), None),
        (ClusterConfig(nodes=2, device="CPU", devices_per_node=3), 6),
    ],
)
def test_size_of_a_cluster(cluster: ClusterConfig, size: int | None) -> None:
    assert cluster_size(cluster) == size


@pytest.mark.parametrize(
    ("layout", "devices", "world"),
    [
        ({}, None, None),
        ({}, 32, 32),
        ({"layout.tensor_parallel_size": 4, "layout.pipeline_parallel_size": 2}, 32, 32),
        ({"layout.pipeline_parallel_size": 3}, 32, 30),
        ({"layout.tensor_parallel_size": 4, "layout.pipeline_parallel_size": 4}, 8, 16),
        ({"layout.data_parallel_size": 2}, 32, None),
    ],
)
def test_replicas_fill_the_cluster(layout: dict[str, object], devices: int | None, world: int | None) -> None:
    assert planned_world_size(build({**BASE, **layout}), devices) == world


def test_a_run_may_go_on_with_other_cluster_keys() -> None:
    assert may_change("cluster.device")
    assert may_change("cluster.usd_per_device_hour")


def test_the_config_of_an_older_run_has_no_cluster() -> None:
    text = to_yaml(compose([]))
    before, _, rest = text.partition("cluster:\n")
    older = before + "".join(line for line in rest.splitlines(keepends=True) if not line.startswith("  "))
    assert "cluster" not in older
    assert from_yaml(older) == compose([])


def test_an_own_file_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "conf" / "cluster" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("device: A100\nnodes: 3\nusd_per_device_hour: 1.5\n")
    assert "mine" in options()["cluster"]
    cluster = compose(["cluster=mine", "cluster.nodes=5"]).cluster
    assert (cluster.device, cluster.nodes, cluster.usd_per_device_hour) == ("A100", 5, 1.5)
    own.write_text("device: A100\nnode: 3\nwatts: much\n")
    with pytest.raises(ConfigError) as caught:
        compose(["cluster=mine"])
    first, second = caught.value.problems
    assert first.startswith("conf/cluster/mine.yaml:2: there is no key 'cluster.node'; did you mean 'cluster.nodes'?")
    assert second == "conf/cluster/mine.yaml:3: cluster.watts must be a number, but is 'much'"


def test_the_range_of_a_key_is_told() -> None:
    assert type_of("cluster.watts") == "number 0.001 to 5000 or null"
