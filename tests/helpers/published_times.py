"""Published step times: tables of them, and the plans and clusters that they belong to."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.published import gpt_plan, llama_plan
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.config.schema_cluster import Software
from trainer.devices import find_device
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant

ROWS = Path(__file__).parents[1] / "unit/planner/rows"
VTRAIN = Path(__file__).parents[2] / "../shared/data/vtrain_multi_node.csv"


@dataclass(frozen=True)
class Row:
    """A run that somebody measured."""

    name: str
    plan: RunPlan
    cluster: Cluster
    seconds: float
    group: str = ""
    """Rows of equal models, devices and batches, whose layouts can be ranked."""


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, whose first lines tell its source."""
    with path.open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def machines(device: str, nodes: int, inter_node_gbps: float, software: Software, virtual: int = 1) -> Cluster:
    """Return machines of the table's devices."""
    row = find_device(device)
    assert row is not None, device

    def sheet(value: float) -> Constant:
        return Constant(value, "device table")

    peaks = {Dtype.fp16: row.peak.fp16, Dtype.bf16: row.peak.bf16, Dtype.fp32: row.peak.fp32}
    return Cluster(
        device=row.name,
        nodes=nodes,
        devices_per_node=row.per_node,
        peak_flops={dtype: sheet(1e12 * peak) for dtype, peak in peaks.items() if peak is not None},
        memory_bandwidth=sheet(1e9 * row.memory.gb_s),
        memory_bytes=sheet(2**30 * row.memory.usable_gib),
        intra_node=sheet(1e9 * row.link.gb_s),
        inter_node=Constant(1e9 * inter_node_gbps, "as the row's source says"),
        host_link=sheet(1e9 * row.bus.gb_s),
        watts=sheet(row.watts),
        usd_per_device_hour=None,
        pue=1.1,
        host_memory_bytes=None,
        software=software,
        virtual_stages=virtual,
    )


def a100s(nodes: int, inter_node_gbps: float, software: Software, virtual: int = 1) -> Cluster:
    """Return machines of 8 A100-80GB."""
    return machines("A100-80GB", nodes, inter_node_gbps, software, virtual)


def _gpt(row: Mapping[str, str], vocab: int, dp: int, **more: object) -> RunPlan:
    sizes = {"hidden": "hidden", "heads": "heads", "layers": "layers", "pp": "pp", "tp": "tp"}
    numbers = {key: int(row[name]) for key, name in sizes.items()}
    batch = {"micro_batch": int(row["micro_batch"]), "global_batch": int(row["global_batch"])}
    return gpt_plan(vocab=vocab, length=2048, dp=dp, **numbers, **batch, **more)  # type: ignore[arg-type]


def sc21() -> list[Row]:
    """Return the rows of Megatron-LM's table 1."""
    found = []
    for row in table(ROWS / "sc21.csv"):
        gpus, size = int(row["gpus"]), int(row["tp"]) * int(row["pp"])
        plan = _gpt(row, 51200, gpus // size, zero_stage=0)
        cluster = a100s(-(-gpus // 8), 25.0, Software.megatron, int(row["virtual"]))
        seconds = _sc21_flops(row) / (gpus * 1e12 * float(row["tflops"]))
        found.append(Row(f"{row['hidden']}x{row['layers']} on {gpus}", plan, cluster, seconds))
    return found


def _sc21_flops(row: Mapping[str, str]) -> float:
    """Return the FLOPs of a step as the paper counts them: 96 B s l h^2 (1 + s/6h + V/16lh)."""
    hidden, layers, batch = (int(row[name]) for name in ("hidden", "layers", "global_batch"))
    bracket = 1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden)
    return 96.0 * batch * 2048 * layers * hidden**2 * bracket


def zero3() -> list[Row]:
    """Return the rows of ZeRO-3 in SC21's table 2."""
    found = []
    for row in table(ROWS / "sc21_zero3.csv"):
        gpus = int(row["gpus"])
        plan = _gpt({**row, "tp": "1", "pp": "1"}, 51200, gpus, zero_stage=3)
        cluster = a100s(gpus // 8, 25.0, Software.deepspeed)
        name = f"ZeRO-3 {row['hidden']}x{row['layers']} on {gpus}"
        found.append(Row(name, plan, cluster, _sc21_flops(row) / (gpus * 1e12 * float(row["tflops"]))))
    return found


def korthikanti() -> list[Row]:
    """Return the rows of arXiv 2205.05198, each with full and with selective recomputation."""
    found = []
    for row in table(ROWS / "korthikanti.csv"):
        cluster = a100s(-(-int(row["gpus"]) // 8), 25.0, Software.megatron, int(row["virtual"]))
        for kind, sharded in (("full", False), ("selective", True)):
            plan = _gpt(row, 51200, 1, zero_stage=0, recompute=kind, sequence_parallel=sharded)
            name = f"{row['hidden']}x{row['layers']} on {row['gpus']}, {kind}"
            found.append(Row(name, plan, cluster, float(row[f"{kind}_s"])))
    return found


def bigscience(*periods: int) -> list[Row]:
    """Return the rows of these periods (see the table)."""
    found = []
    for row in table(ROWS / "bigscience.csv"):
        if int(row["period"]) in periods:
            dp, tp, pp = (int(row[name]) for name in ("dp", "tp", "pp"))
            cluster = a100s(-(-dp * tp * pp // 8), 6.25, Software.deepspeed)
            name = f"{row['hidden']}x{row['layers']}, {row['heads']} heads, dp{dp} tp{tp} pp{pp} b{row['micro_batch']}"
            plan = _gpt(row, 250880, dp, zero_stage=1)
            found.append(Row(f"{name} B{row['global_batch']}", plan, cluster, float(row["seconds"])))
    return found


def vtrain() -> list[Row]:
    """Return vTrain's rows of several machines; none where the table is missing."""
    found = []
    for row in table(VTRAIN) if VTRAIN.exists() else []:
        names = {"hidden": "hidden size", "heads": "attention heads", "layers": "# layers"}
        named = {key: row[name] for key, name in names.items()}
        named |= {"tp": row["tensor parallelism"], "pp": row["pipeline parallelism"]}
        named |= {"micro_batch": row["micro batch"], "global_batch": row["global batch"]}
        dp, gpus = int(row["data parallelism"]), int(row["# GPUs"])
        plan = _gpt(named, 51200, dp, zero_stage=0)
        cluster = a100s(gpus // 8, 25.0, Software.megatron)
        name = f"{row['Parameters (billion)']}B dp{dp} tp{named['tp']} pp{named['pp']} b{named['micro_batch']}"
        found.append(Row(name, plan, cluster, float(row["iteration time (ms)"]) / 1e3, row["Parameters (billion)"]))
    return found


def elsewhere() -> list[Row]:
    """Return the rows that no profile is fitted on; `group` is their source."""
    found = []
    for row in table(ROWS / "elsewhere.csv"):
        names = ("hidden", "heads", "layers", "vocab", "length", "pp", "tp", "dp", "micro_batch", "global_batch")
        sizes: dict[str, int | str | bool] = {name: int(row[name]) for name in names}
        sizes |= {"recompute": row["recompute"], "sequence_parallel": row["sequence_parallel"] == "1"}
        sizes |= {"zero_stage": int(row["zero"]), "dtype": "bf16"}
        if row["family"] == "gpt":
            dropout = 0.1 if row["source"] in ("MT-NLG", "MegaScale") else 0.0
            plan = gpt_plan(**sizes, dropout=dropout)  # type: ignore[arg-type]
        else:
            plan = llama_plan(**sizes, kv_heads=int(row["kv_heads"]), ffn=int(row["ffn"]))  # type: ignore[arg-type]
        nodes = -(-plan.world_size // 8)
        cluster = machines(row["device"], nodes, float(row["inter"]), Software(row["engine"]), int(row["virtual"]))
        rate, unit = float(row["rate"]), row["unit"]
        work = {
            "s": rate,
            "tok": plan.tokens_per_step / plan.world_size / rate,
            "tflops": plan.tokens_per_step * plan.flops_per_token / plan.world_size / 1e12 / rate,
        }
        layers = f"{row['hidden']}x{row['layers']} s{row['length']}"
        layout = f"dp{row['dp']} tp{row['tp']} pp{row['pp']} b{row['micro_batch']} B{row['global_batch']}"
        found.append(Row(f"{row['device']} {layers} {layout}", plan, cluster, work[unit], row["source"]))
    return found


def places(values: Sequence[float]) -> list[int]:
    """Return the place of each value in ascending order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(index) for index in range(len(values))]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's correlation of two rankings without ties."""
    count = len(one)
    squares = sum((a - b) ** 2 for a, b in zip(places(one), places(other), strict=True))
    return 1 - 6 * squares / (count * (count**2 - 1))


def regret(said: Sequence[float], measured: Sequence[float]) -> float:
    """Return how much slower the layout is that is said to be the fastest than the one that is."""
    chosen = min(range(len(said)), key=said.__getitem__)
    return measured[chosen] / min(measured) - 1
