from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.helpers.predictions import prediction, stage
from tests.helpers.published import gpt_plan
from trainer.config.plan import RunPlan
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.post_mortem import (
    MIB,
    Foreseen,
    Held,
    PostMortem,
    moment_of,
    post_mortem,
    table,
    usable_bytes,
)
from trainer.planner.prediction import GIB
from trainer.progress import BUILDING, COMPILING, PHASES, Progress

SOME = Constant(1e12, "nobody")
CLUSTER = Cluster(
    device="X",
    nodes=1,
    devices_per_node=4,
    peak_flops={},
    memory_bandwidth=SOME,
    memory_bytes=Constant(80.0 * GIB, "nobody"),
    intra_node=SOME,
    inter_node=SOME,
    host_link=SOME,
    watts=SOME,
    usd_per_device_hour=None,
    pue=1.0,
    host_memory_bytes=None,
    software=Software.trident,
    virtual_stages=1,
)
PLAN = gpt_plan(
    hidden=64, heads=4, layers=4, vocab=64, length=32, pp=2, tp=1, dp=2, micro_batch=1, global_batch=8, zero_stage=1
)
STAGE = stage(weights=2 * GIB, gradients=2 * GIB, moments=4 * GIB, activations=6 * GIB, loss=GIB)
HELD = Held(
    total=15 * GIB,
    limit=16 * GIB,
    refused=3 * GIB,
    overhead=GIB,
    tensors=(("weights", 2 * GIB), ("gradients", 2 * GIB), ("moments", 4 * GIB)),
)


def test_what_was_held_stands_beside_what_was_predicted() -> None:
    assert table("rank 1", "in the backward pass of step 3", STAGE, HELD) == (
        "rank 1 ran out of memory in the backward pass of step 3; it held, in GiB:",
        "                                        predicted   measured",
        "  weights                                    2.00       2.00",
        "  gradients                                  2.00       2.00",
        "  moments of the optimizer                   4.00       4.00",
        "  all other tensors and fragments            7.00       6.00",
        "    activations that wait for backward       6.00          -",
        "    head and loss                            1.00          -",
        "  context and libraries                      1.00       1.00",
        "  fullest moment of backward                16.00          -",
        "  the most that it has held                     -      15.00",
        "  asked for besides, and refused                -       3.00",
        "  the most that it could get                    -      16.00",
    )


def test_little_is_told_in_mib_and_other_full_moments_are_named() -> None:
    lines = table("rank 0", "x", stage(overhead=0, weights=MIB, init_peak=3 * MIB, step_peak=2 * MIB), None)
    assert lines[0].endswith("it was predicted to hold, in MiB:")
    assert lines[-2].split() == ["fullest", "moment", "of", "the", "start", "3.00", "-"]
    assert lines[-1].split() == ["fullest", "moment", "of", "the", "optimizer", "step", "2.00", "-"]


def test_without_a_prediction_there_is_what_was_measured() -> None:
    lines = table("rank 0", "x", None, HELD)
    assert "  everything else                               -       6.00" in lines
    assert table("rank 0", "at its data", None, None) == ("rank 0 ran out of memory at its data",)


@pytest.mark.parametrize(
    ("phase", "step", "instruction", "words"),
    [
        (BUILDING, 0, None, f"while {BUILDING}"),
        (COMPILING, 0, "adam", f"while {COMPILING} (adam)"),
        ("start", 0, None, "before the first step"),
        ("forward", 3, None, "in the forward pass of step 3"),
        ("backward", 3, None, "in the backward pass of step 3"),
        ("optimizer", 3, None, "in the optimizer step of step 3"),
        ("pipeline", 3, "ForwardPass", "in the forward pass of step 3"),
        ("pipeline", 3, "BackwardPass", "in the backward pass of step 3"),
        ("pipeline", 3, "OptimizerStep", "in the optimizer step of step 3"),
        ("pipeline", 3, "RecvActivation", "in the pipeline of step 3"),
        ("end", 3, None, "at the end of the run"),
    ],
)
def test_moments(phase: str, step: int, instruction: str | None, words: str) -> None:
    progress = Progress(step=step)
    progress.enter(phase)
    progress.instruction = instruction
    assert moment_of(progress) == words


def test_every_phase_has_words() -> None:
    for phase in PHASES:
        progress = Progress()
        progress.enter(phase)
        assert moment_of(progress)


@pytest.mark.parametrize(
    ("predicted", "held", "limit", "usable"),
    [
        # Predicted right, and too much: what there is, with room for the error.
        (2000, Held(total=1500, limit=1600, refused=300), None, round(1600 / 1.25)),
        # Predicted to fit, but it needed 18: predictions are too low by 12 / 18.
        (12, Held(total=15, limit=16, refused=3), None, round(16 * 12 / 18)),
        # Nobody knows how much was asked for: less than before.
        (1000, Held(total=9000, limit=9000), None, round(0.98 * 1000 * 9000 / 9000)),
        (100, Held(total=15), None, 12),
        (100, None, 40, 32),
        (100, None, 400, 98),
        (100, None, None, 98),
    ],
)
def test_what_another_run_may_be_predicted_to_need(
    predicted: int, held: Held | None, limit: int | None, usable: int
) -> None:
    assert usable_bytes(predicted, 0.25, held, limit) == usable


def asked(plan: RunPlan, cluster: Cluster) -> Sequence[str]:
    assert plan is PLAN
    return (f"memory={cluster.memory_bytes.value / GIB:.1f}", "a=b")


def test_the_change_must_fit_what_the_rank_could_get() -> None:
    foreseen = Foreseen(prediction(stage(weights=GIB), STAGE), CLUSTER)
    # Predicted 16 GiB, but it needed 18 at the least.
    found = post_mortem(PLAN, 2, "x", HELD, foreseen, asked)
    assert found.lines == table("rank 2 (pipeline rank 1)", "x", STAGE, HELD)
    assert found.overrides == ("memory=14.2", "a=b")
    assert found.hints == ["this change is predicted to fit: memory=14.2 a=b (added to the same command)"]


def test_of_a_killed_rank_only_the_prediction_is_known() -> None:
    foreseen = Foreseen(prediction(STAGE, STAGE, memory_error=0.25), CLUSTER)
    found = post_mortem(PLAN, 0, "x", None, foreseen, asked, limit=4 * GIB)
    assert found.overrides[0] == "memory=3.2"
    assert not any("measured" in line and "held" in line for line in found.lines[1:])


def host_asked(plan: RunPlan, cluster: Cluster) -> Sequence[str]:
    assert cluster.host_memory_bytes is not None
    assert cluster.memory_bytes == CLUSTER.memory_bytes
    return (f"host={cluster.host_memory_bytes.value / GIB:.1f}",)


def test_the_hosts_memory_is_offloads() -> None:
    foreseen = Foreseen(replace(prediction(stage(host=8 * GIB), STAGE, memory_error=0.25), ranks_per_node=4), CLUSTER)
    held = Held(total=5 * GIB, limit=6 * GIB)
    found = post_mortem(PLAN, 0, "in the optimizer step of step 1", held, foreseen, host_asked, is_on_host=True)
    assert found.lines == (
        "rank 0 (pipeline rank 0) ran out of the host's memory in the optimizer step of step 1; it has taken 5.00 GiB "
        "since its engine began to be built, and offload was predicted to take 8.00 GiB",
    )
    assert found.overrides == ("host=19.2",)
    without = post_mortem(PLAN, 2, "x", held, foreseen, host_asked, is_on_host=True)
    assert without.lines[0].endswith("offload was predicted to take 0.00 GiB")
    assert without.overrides == ()


def test_where_nothing_fits_nothing_is_proposed() -> None:
    foreseen = Foreseen(prediction(STAGE, STAGE), CLUSTER)
    assert post_mortem(PLAN, 0, "x", HELD, foreseen, lambda plan, cluster: ()).hints == []


@pytest.mark.parametrize("foreseen", [Foreseen(None, CLUSTER, "no such device"), Foreseen(prediction(STAGE), None)])
def test_a_run_that_was_not_predicted_gets_what_was_measured(foreseen: Foreseen) -> None:
    found = post_mortem(PLAN, 0, "x", HELD, foreseen, asked)
    assert found.lines[:-1] == table("rank 0 (pipeline rank 0)", "x", None, HELD)
    assert found.lines[-1].startswith("  nothing was predicted")
    assert replace(found, lines=()) == PostMortem(())
