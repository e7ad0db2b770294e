"""The memory of published runs, measured by their authors, against what the planner says of them."""

from __future__ import annotations

import csv
from itertools import accumulate
from pathlib import Path
from statistics import mean

import pytest

from tests.helpers.published import gpt_plan, llama_plan
from trainer.config.plan import RunPlan
from trainer.config.schema_cluster import Software
from trainer.planner.peer_memory import OVERHEADS, PeerMemory
from trainer.planner.prediction import GIB
from trainer.planner.published_formulas import ADAM, block_bytes, chunks_in_flight, zero_states

ROWS = Path(__file__).parent / "rows"
NVIDIA_SMI_GB = 1000 * 2**20
"""Bytes of what BigScience's chronicle calls GB."""
A100_GB = 81.251
"""Memory of an A100-80GB in that unit: nvidia-smi shows 81,251 MiB."""


KORTHIKANTI = (
    # layers, hidden, heads, p, b, v, micro-batches, GiB: activations without recomputation, with sequence parallelism
    # and selective recomputation, model states. arXiv 2205.05198, figure 1, in the digits of calculon's validation.
    (48, 6144, 64, 1, 4, 1, 1, 59.25, 9.5625, 45.5625),
    (96, 12288, 96, 8, 1, 3, 64, 66.84375, 12.3516, 45.5625),
    (105, 20480, 128, 35, 1, 3, 280, 114.0234, 23.0762, 31.6406),
    (128, 25600, 160, 64, 1, 1, 512, 131.25, 26.5625, 32.9590),
)


def korthikanti(row: tuple[float, ...], recompute: str, sequence_parallel: bool, dtype: str = "bf16") -> RunPlan:
    layers, hidden, heads, pp, micro_batch, _, micro_batches = (int(value) for value in row[:7])
    return gpt_plan(
        hidden=hidden,
        heads=heads,
        layers=layers,
        vocab=51200,
        length=2048,
        pp=pp,
        tp=8,
        dp=1,
        micro_batch=micro_batch,
        global_batch=micro_batch * micro_batches,
        recompute=recompute,
        sequence_parallel=sequence_parallel,
        zero_stage=0,
        dtype=dtype,
    )


@pytest.mark.parametrize("row", KORTHIKANTI, ids=["22B", "175B", "530B", "1T"])
def test_activations_and_states_are_those_of_korthikanti_et_al(row: tuple[float, ...]) -> None:
    virtual_stages = int(row[5])
    model = PeerMemory(Software.megatron, virtual_stages)
    none = model.stages(korthikanti(row, "none", False))[0]
    both = model.stages(korthikanti(row, "selective", True))[0]
    assert none.activations / GIB == pytest.approx(row[7], rel=1e-6)
    assert both.activations / GIB == pytest.approx(row[8], rel=1e-5)
    # The paper counts the matrices of the blocks alone, 12 L h^2.
    layers, hidden, _, pp = (int(value) for value in row[:4])
    matrices = 12 * layers * hidden**2 // (8 * pp)
    assert matrices * (2 + 4 + ADAM) / GIB == pytest.approx(row[9], rel=1e-5)
    states = none.weights + none.gradients + none.master + none.moments
    assert matrices * 18 < states < 1.15 * matrices * 18


@pytest.mark.parametrize(
    ("hidden", "heads", "sequence_parallel", "selective", "both"),
    [(6144, 64, 66.84, 49.42, 16.18), (12288, 96, 62.04, 56.53, 18.49), (20480, 128, 58.31, 62.04, 20.27)],
)
def test_shares_of_sequence_parallelism_and_selective_recomputation(
    hidden: int, heads: int, sequence_parallel: float, selective: float, both: float
) -> None:
    row = (1, hidden, heads, 1, 1, 1, 1)

    def bytes_of(recompute: str, shards: bool) -> float:
        plan = korthikanti(row, recompute, shards)
        return block_bytes(plan.model.blocks[0], plan.execution, 1, 8, shards)

    whole = bytes_of("none", False)
    assert 100 * bytes_of("none", True) / whole == pytest.approx(sequence_parallel, abs=0.15)
    assert 100 * bytes_of("selective", False) / whole == pytest.approx(selective, abs=0.15)
    assert 100 * bytes_of("selective", True) / whole == pytest.approx(both, abs=0.15)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.40625), (2, 16.640625), (3, 1.875)])
def test_states_of_each_zero_stage_are_those_of_its_paper(stage: int, gigabytes: float) -> None:
    # arXiv 1910.02054, figure 1: 7.5 billion parameters, 64 replicas.
    assert zero_states(7_500_000_000, 64, stage) / 1e9 == gigabytes


def test_weights_of_gpt_3_in_fp32_are_700_gb() -> None:
    plan = gpt_plan(
        hidden=12288,
        heads=96,
        layers=96,
        vocab=50257,
        length=2048,
        pp=8,
        tp=8,
        dp=1,
        micro_batch=1,
        global_batch=64,
        zero_stage=0,
        dtype="fp32",
        tied=False,
    )
    stages = PeerMemory(Software.megatron, 1).stages(plan)
    # Every tensor-parallel rank holds norms and positions; the head's own matrix is not counted in GPT-3's 175B.
    head = 4 * 50257 * 12288
    assert 8 * sum(stage.weights for stage in stages) - head == pytest.approx(700e9, rel=5e-3)


def test_chunks_in_flight_of_interleaved_1f1b_are_those_of_the_formula() -> None:
    for pp, virtual_stages in ((8, 3), (35, 3), (4, 2)):
        whole = chunks_in_flight(0, pp, 100, virtual_stages) / virtual_stages
        assert whole == pytest.approx(pp * (1 + (pp - 1) / (pp * virtual_stages)))
    assert [chunks_in_flight(stage, 4, 3) for stage in range(4)] == [3, 3, 2, 1]


ZERO_BUBBLE = (
    # arXiv 2401.10241, table 4: layers, heads, hidden, p, b, m, GB with 1F1B; and GB with twice the micro-batch.
    ("1.5B", 22, 24, 2304, 8, 6, 24, 30, 57),
    ("6.2B", 30, 32, 4096, 8, 3, 24, 39, 66),
    ("14.6B", 46, 40, 5120, 16, 1, 48, 32, 50),
    ("28.3B", 62, 48, 6144, 32, 1, 96, 43, 72),
)


def zero_bubble(row: tuple[object, ...], times: int) -> RunPlan:
    _, layers, heads, hidden, pp, micro_batch, micro_batches = (int(v) if isinstance(v, int) else 0 for v in row[:7])
    each = (layers + 2) // pp
    return gpt_plan(
        hidden=hidden,
        heads=heads,
        layers=layers,
        vocab=50304,
        length=1024,
        pp=pp,
        tp=1,
        dp=1,
        micro_batch=times * micro_batch,
        global_batch=times * micro_batch * micro_batches,
        recompute="none",
        zero_stage=0,
        tied=False,
        stage_boundaries=tuple(accumulate([each - 1, *[each] * (pp - 2)])),
    )


@pytest.mark.parametrize("row", ZERO_BUBBLE, ids=[row[0] for row in ZERO_BUBBLE])
def test_memory_of_the_zero_bubble_papers_runs(row: tuple[object, ...]) -> None:
    for times, measured in ((1, row[7]), (2, row[8])):
        assert isinstance(measured, int)
        stages = PeerMemory(Software.megatron, 1).stages(zero_bubble(row, times))
        peaks = [stage.peak for stage in stages]
        # The first stage has a block less and the most in flight; the second one is fullest.
        assert peaks.index(max(peaks)) == 1
        assert max(peaks) / 1e9 == pytest.approx(measured, rel=0.10)


def bigscience(row: dict[str, str]) -> RunPlan:
    layers, pp, slot = int(row["layers"]), int(row["pp"]), int(row["embedding_slot"])
    boundaries: tuple[int, ...] = ()
    if slot:
        each = (layers + 2) // pp
        boundaries = tuple(accumulate([each - 1, *[each] * (pp - 2)]))
    return gpt_plan(
        hidden=int(row["hidden"]),
        heads=int(row["heads"]),
        layers=layers,
        vocab=250880,
        length=2048,
        pp=pp,
        tp=int(row["tp"]),
        dp=int(row["dp"]),
        micro_batch=int(row["micro_batch"]),
        global_batch=int(row["global_batch"]),
        dtype=row["dtype"],
        stage_boundaries=boundaries,
    )


def bigscience_rows() -> list[dict[str, str]]:
    lines = (ROWS / "bigscience_memory.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_memory_of_bigscience_rows() -> None:
    model = PeerMemory(Software.deepspeed, 1)
    errors: dict[str, list[float]] = {"fit": [], "held_out": []}
    refused, fitting_refused = [], []
    for row in bigscience_rows():
        stages = model.stages(bigscience(row))
        fits = max(stage.peak for stage in stages) / NVIDIA_SMI_GB <= A100_GB
        if row["gb"] == "OOM":
            refused.append(not fits)
            continue
        fitting_refused += [] if fits else [row]
        # Measured on the first node, whose fullest device holds the embedding.
        errors[row["part"]].append(stages[0].peak / NVIDIA_SMI_GB / float(row["gb"]) - 1)
    assert (len(errors["fit"]), len(errors["held_out"])) == (32, 34)
    for part in errors.values():
        assert mean(map(abs, part)) < 0.05
        assert max(map(abs, part)) < 0.10
    assert sum(refused) >= len(refused) - 1 == 5
    assert len(fitting_refused) <= 1


def test_overheads_of_the_profile_are_the_fit_of_its_rows() -> None:
    """Least squares of relative errors over the rows of the fit alone."""
    model = PeerMemory(Software.deepspeed, 1)
    squares = [0.0] * 5
    for row in bigscience_rows():
        if row["part"] != "fit" or row["gb"] == "OOM":
            continue
        first = model.stages(bigscience(row))[0]
        measured = float(row["gb"]) * NVIDIA_SMI_GB
        temporary = first.activations + first.working + first.loss
        x, y = temporary / measured, 1 / measured
        z = 1 - (first.backward - first.overhead) / measured
        squares = [s + v for s, v in zip(squares, (x * x, x * y, y * y, x * z, y * z), strict=True)]
    xx, xy, yy, xz, yz = squares
    determinant = xx * yy - xy * xy
    found = OVERHEADS[Software.deepspeed]
    assert found.of_activations.value == pytest.approx((xz * yy - yz * xy) / determinant, rel=0.02)
    assert found.fixed.value == pytest.approx((xx * yz - xy * xz) / determinant, rel=0.02)


SIMUMAX = (
    # GiB on B200, bf16, 4,096 tokens, micro-batches of one: MooreThreads/SimuMax, docs/FULL_RESULTS.md (v1.2).
    # (hidden, heads, ffn, layers), pp, tp, dp, GiB.
    ((8192, 64, 28672, 12), 2, 1, 4, 66.55),
    ((8192, 64, 28672, 12), 1, 2, 4, 60.68),
    ((8192, 64, 28672, 12), 1, 4, 2, 39.07),
    ((8192, 64, 28672, 12), 1, 8, 1, 28.29),
    ((16384, 128, 53248, 4), 2, 1, 4, 87.08),
    ((16384, 128, 53248, 4), 1, 2, 4, 81.59),
    ((16384, 128, 53248, 4), 1, 4, 2, 52.89),
    ((16384, 128, 53248, 4), 1, 8, 1, 38.57),
)


@pytest.mark.parametrize(("sizes", "pp", "tp", "dp", "measured"), SIMUMAX)
def test_memory_of_simumax_dense_rows(
    sizes: tuple[int, int, int, int], pp: int, tp: int, dp: int, measured: float
) -> None:
    hidden, heads, ffn, layers = sizes
    plan = llama_plan(
        hidden=hidden,
        heads=heads,
        kv_heads=8,
        ffn=ffn,
        layers=layers,
        vocab=128256,
        length=4096,
        pp=pp,
        tp=tp,
        dp=dp,
        micro_batch=1,
        global_batch=8 * dp,
        sequence_parallel=tp > 1,
    )
    stages = PeerMemory(Software.megatron, 1).stages(plan)
    # Theirs are figures of torch's allocator, which does not see the context.
    peak = max(stage.peak - stage.overhead for stage in stages)
    assert peak / GIB == pytest.approx(measured, rel=0.05)
