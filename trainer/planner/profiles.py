"""The declared profiles: constants of the time model for devices and eras of software. No torch.

A profile is fitted once, on the published runs that its source names, and serves every other run of that device and
software. Devices and software without such runs get a profile from data sheets and microbenchmarks, whose error is
wide and says so. `trident plan --calibrate` measures a profile of this machine instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.profile import Link, Profile

_NCCL = "all-reduce times of stas00/ml-engineering, network/README, 8 A100 and 8 H200"
_HOST = "DeepSpeed CPU Adam moves memory at about this rate (ZeRO-Offload, arXiv 2101.06840); not re-measured"

_REACHED: Mapping[str, float] = {
    "A100": 0.80,
    "A800": 0.80,
    "B200": 0.60,
    "B300": 0.60,
    "GB200": 0.60,
    "GB300": 0.60,
    "H100": 0.70,
    "H200": 0.70,
    "H800": 0.70,
    "GH200": 0.70,
    "MI300X": 0.45,
    "MI325X": 0.50,
}
"""Share of the peak that GEMMs of a model sustain; a single one may reach more."""
_GEMMS = (
    "A100 and B200: fit to the GEMMs that SimuMax measured (MooreThreads/SimuMax); others: assumed, between these and "
    "the largest GEMM rate of stas00/ml-engineering, compute/accelerator (MAMF)"
)
_OTHERWISE = Constant(0.7, "assumed: between the shares of the devices that were measured")


@dataclass(frozen=True)
class _Source:
    """Makes constants of one source."""

    name: str

    def __call__(self, value: float) -> Constant:
        return Constant(value, self.name)


_SC21 = _Source(
    "fitted on Megatron-LM's rows of arXiv 2104.04473 (table 1) and 2205.05198 (table 5), and on vTrain's rows of "
    "several machines (VIA-Research/vTrain)"
)
_CHRONICLES = _Source("fitted on 17 layouts of BigScience's 181B model, 25-26 February 2022 (chronicles-prequel)")
_HEADS = _Source("fitted on one row of BigScience's chronicles: heads of 108 instead of 144")
_ZERO3 = _Source(
    "fitted on ZeRO-3's rows of the 175B model in arXiv 2104.04473 (table 2); Megatron-DeepSpeed overlaps there only"
)
_ASSUMED = _Source("assumed, not fitted: data sheets and microbenchmarks only")

MEGATRON_A100 = Profile(
    name="Megatron-LM on A100, 2021-2022",
    gemm_efficiency=_SC21(0.84),
    gemm_bandwidth_efficiency=_SC21(0.9),
    gemm_latency_s=_SC21(5e-6),
    gemm_half_width=_SC21(4.0),
    attention_efficiency=_SC21(0.55),
    score_passes=_SC21(7.2),
    bandwidth_efficiency=_SC21(1.0),
    launch_s=_SC21(1e-5),
    floor_s=_SC21(2e-3),
    tensor_overlap=_SC21(0.04),
    intra_node=Link(_SC21(2e-5), _SC21(0.77), _SC21(12e6)),
    inter_node=Link(_SC21(5e-5), _SC21(0.53), _SC21(8.5e6)),
    host=Link(_ASSUMED(2e-5), _ASSUMED(0.8), _ASSUMED(1e6)),
    gradient_traffic=_SC21(1.0),
    overlap=Constant(0.0, "Megatron-LM of that time reduced gradients after backward"),
    optimizer_efficiency=_SC21(0.6),
    step_s=_SC21(0.02),
    odd_head_factor=_HEADS(18.0),
    host_bandwidth=Constant(1e11, _HOST),
    error=Constant(
        0.08,
        "runs that it was not fitted on: 41 more of vTrain's rows 6 %, Megatron-LM in MegaScale (arXiv 2402.15627) 3 %",
    ),
    memory_error=_ASSUMED(0.1),
)
DEEPSPEED_A100 = replace(
    MEGATRON_A100,
    name="Megatron-DeepSpeed on A100, 2022",
    launch_s=_CHRONICLES(8.7e-4),
    floor_s=_CHRONICLES(1.5e-3),
    tensor_overlap=Constant(0.0, "Megatron-DeepSpeed hides no collective of the tensor axis"),
    inter_node=Link(_CHRONICLES(5e-5), _CHRONICLES(0.81), _CHRONICLES(5e6)),
    gradient_traffic=_CHRONICLES(2.05),
    step_s=_CHRONICLES(0.1),
    weight_traffic=_ZERO3(9.0),
    overlap=_ZERO3(0.3),
    error=Constant(0.1, "runs that it was not fitted on: chronicles 4 %, ZeRO-3 6 %, MT-NLG 10 %, GPT-NeoX-20B 17 %"),
)


def profile_for(cluster: Cluster) -> Profile:
    """Return the profile of a cluster's device and software."""
    is_ampere = cluster.device.startswith(("A100-40", "A100-80", "A800"))
    if cluster.is_cpu:
        return _processor()
    if is_ampere and cluster.software is Software.megatron:
        return MEGATRON_A100
    if is_ampere and cluster.software is Software.deepspeed:
        return DEEPSPEED_A100
    return _sheet(cluster)


def _reached(device: str) -> Constant:
    """Return the share of the peak that large GEMMs reach, by the longest name that the device's begins with."""
    found = [name for name in _REACHED if device.startswith(name)]
    return Constant(_REACHED[max(found, key=len)], _GEMMS) if found else _OTHERWISE


def _error(device: str) -> Constant:
    """Return the error of a profile from data sheets: measured where published runs of the device were tried."""
    tried = "docs/planner_times.md: published runs of other software on this device, none of which it is fitted on"
    found = {"A100-PCIe": 0.2, "A100": 0.12, "A800": 0.15, "H100": 0.17, "H200": 0.2, "B200": 0.15}
    names = [name for name in found if device.startswith(name)]
    if not names:
        return _ASSUMED(0.3)
    name = max(names, key=len)
    return Constant(found[name], tried if name in ("A100", "H100", "B200") else "assumed: near a device that was tried")


def _sheet(cluster: Cluster) -> Profile:
    """Return a profile of today's software, with a fused attention, on a device that no runs were fitted on."""
    fused = _Source("FlashAttention-2 reaches about this share on A100 (arXiv 2307.08691) and on H100 (2407.08608)")
    # Its published runs on H100 hide collectives behind GEMMs (--tp-comm-overlap); how much is assumed.
    hides = cluster.software is Software.megatron and cluster.device.startswith(("H100", "H200"))
    attention = 0.5 if cluster.device.startswith(("A100", "A800")) else 0.4
    nccl = _Source(_NCCL)
    return Profile(
        name=f"{cluster.software.value} on {cluster.device}, from data sheets",
        gemm_efficiency=_reached(cluster.device),
        gemm_bandwidth_efficiency=_ASSUMED(0.8),
        gemm_latency_s=_ASSUMED(5e-6),
        gemm_half_width=_ASSUMED(100.0),
        attention_efficiency=fused(attention),
        causal_share=Constant(0.5, "fused attention leaves out the scores of later tokens"),
        bandwidth_efficiency=_ASSUMED(0.8),
        launch_s=_ASSUMED(1e-4),
        floor_s=_ASSUMED(5e-4),
        intra_node=Link(nccl(2e-5), nccl(0.77), nccl(2e7)),
        inter_node=Link(nccl(5e-5), nccl(0.73), nccl(5e6)),
        host=Link(_ASSUMED(2e-5), _ASSUMED(0.8), _ASSUMED(1e6)),
        tensor_overlap=_ASSUMED(0.5 if hides else 0.0),
        gradient_traffic=_ASSUMED(1.0),
        overlap=_ASSUMED(0.7),
        optimizer_efficiency=_ASSUMED(0.6),
        step_s=_ASSUMED(0.02),
        host_bandwidth=Constant(1e11, _HOST),
        nvme_bandwidth=_ASSUMED(6e9),
        error=_error(cluster.device),
        memory_error=_ASSUMED(0.15),
    )


def _processor() -> Profile:
    """Return a profile of CPU ranks on a machine that was not measured."""
    return Profile(
        name="CPU ranks, not measured: `trident plan --calibrate` measures this machine",
        gemm_efficiency=_ASSUMED(0.6),
        gemm_bandwidth_efficiency=_ASSUMED(0.7),
        gemm_latency_s=_ASSUMED(1e-5),
        attention_efficiency=_ASSUMED(0.3),
        causal_share=_ASSUMED(0.5),
        bandwidth_efficiency=_ASSUMED(0.5),
        launch_s=_ASSUMED(3e-4),
        micro_batch_s=_ASSUMED(2e-3),
        gather_s=_ASSUMED(1e-3),
        intra_node=Link(_ASSUMED(1e-4), _ASSUMED(0.5), _ASSUMED(1e5), hop_s=_ASSUMED(5e-5)),
        inter_node=Link(_ASSUMED(2e-4), _ASSUMED(0.7), _ASSUMED(1e5), hop_s=_ASSUMED(1e-4)),
        host=Link(_ASSUMED(1e-5), _ASSUMED(0.5), _ASSUMED(1e5)),
        gradient_traffic=_ASSUMED(1.0),
        overlap=_ASSUMED(0.0),
        optimizer_efficiency=_ASSUMED(0.5),
        step_s=_ASSUMED(5e-3),
        host_bandwidth=_ASSUMED(1e10),
        error=_ASSUMED(0.5),
        memory_error=_ASSUMED(0.2),
    )
