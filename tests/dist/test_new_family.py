"""A family that the package has never heard of trains, is cut, saved and resumed in every layout, as data alone.

One run goes from layout to layout: each trains some steps, saves, and the next one begins where it left. Losses and
gradient norms of all of it are those of the oracle, a single plain loop.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dist.resume_fixtures import Run, Trainer, run_config, tokens_of
from tests.helpers.dist import run_distributed
from tests.helpers.families import toy, toy_oracle
from tests.helpers.models import context_of, drawn
from tests.helpers.parity import OPTIMIZER, TOLERANCES, VOCABULARY, Case
from trainer.balance import report
from trainer.config.ds_json import deepspeed_json
from trainer.config.plan import RunPlan, make_plan
from trainer.description import plan_record
from trainer.mesh import Mesh
from trainer.model.gpt import GPT
from trainer.oracle.reference import train_reference
from trainer.pipeline.partition import stages
from trainer.pipeline.traffic import node_traffic
from trainer.planner.own_memory import OwnMemory
from trainer.tensor_parallel.shard import shard_spec, without_padding
from trainer.topology.groups import SingleGroup

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

LAYOUTS = (
    Case(tp=2, sequence_parallel=True),
    Case(pp=2, zero=0),
    Case(dp=2, zero=3),
    Case(pp=2, schedule="dualpipev", recompute="full"),
    Case(tp=2, zero=0, fused_loss=False),
    Case(dp=2, zero=2),
)
STEPS = 2
"""Of each layout."""
RUNS = tuple(Run(case, family=toy, num_layers=4) for case in LAYOUTS)


def _go_from_layout_to_layout(
    rank: int, world_size: int, runs: Sequence[Run], folder: Path
) -> list[tuple[float, float]]:
    seen = []
    for index, run in enumerate(runs):
        trainer = Trainer(run, rank, world_size, folder, is_resumed=index > 0)
        if index:
            trainer.resume()
        seen += trainer.train((index + 1) * STEPS)
        trainer.save()
        del trainer
        gc.collect()
    return seen


def test_it_trains_and_is_saved_and_resumed_in_every_kind_of_layout(tmp_path: Path) -> None:
    config = run_config(RUNS[0]).model
    group = SingleGroup()
    gpt = drawn(GPT(context_of(config, VOCABULARY, group, family=toy)), group, run_config(RUNS[0]).train.seed)
    weights = {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in gpt.parameters()}
    last = STEPS * len(RUNS)
    steps = [[(tokens[:, :-1], tokens[:, 1:])] for tokens in map(tokens_of, range(1, last + 1))]
    oracle = train_reference(toy_oracle(config), weights, steps, OPTIMIZER)
    for seen in run_distributed(_go_from_layout_to_layout, 2, RUNS, tmp_path, timeout_s=240):
        assert [loss for loss, _ in seen] == pytest.approx(oracle.losses, rel=TOLERANCES["fp32"].loss)
        assert [norm for _, norm in seen] == pytest.approx(oracle.grad_norms, rel=TOLERANCES["fp32"].grad_norm)


def test_it_is_counted_cut_and_told_before_it_runs() -> None:
    config = run_config(replace(RUNS[1], num_layers=6))
    plain = make_plan(config, VOCABULARY, 2)
    plan = replace(plain, model=toy(plain.model))
    model = plan.model
    gpt = GPT(context_of(replace(config.model, vocab_pad_multiple=1), VOCABULARY, family=toy))
    assert model.parameter_count == sum(parameter.numel() for parameter in gpt.parameters())
    # One norm a block instead of two, and no learned positions.
    assert plain.model.parameter_count - model.parameter_count == 6 * 2 * 64 + 8 * 64
    # Every other block sees 3 of the 8 positions.
    assert plain.model.flops_per_token(8) - model.flops_per_token(8) == 3 * 3 * 4 * 64 * (8 - 3)
    assert [layer for stage in stages(plan) for layer in stage.layers] == list(model.layers)
    assert node_traffic(plan, ["a", "b"]).pipeline_bytes == node_traffic(plain, ["a", "b"]).pipeline_bytes
    # Input and output of one norm less, but queries and keys before and after they are turned; fp32.
    elements = 6 * 8 * (-2 * 64 + 2 * 64)
    # Mean and deviation of that norm; a mask of each block with a window, and one of bools; cosines and sines, and the
    # numbers of the positions.
    rope = model.blocks[0].attention.rope
    assert rope is not None
    beside = -6 * 8 * 2 * 4 + 3 * 8 * 8 * 4 + 8 * 8 + 8 * rope.dims * 4 - 8 * 8
    memory, alone = OwnMemory(on_cpu=True), Mesh(1, 1, 1)
    here, there = (memory.stages(replace(one, mesh=alone))[0].activations for one in (plan, plain))
    assert here - there == 4 * elements + beside
    record = plan_record(plan)
    assert record["model"]["parameters"] == model.parameter_count  # type: ignore[index]
    assert record["deepspeed"] == deepspeed_json(plan)
    text = layer_report(plan)
    assert all(word in text for word in ("block (3, each)", "blocks.1 (3, each)"))


def layer_report(plan: RunPlan) -> str:
    return report(plan, {layer.name: (1.0, 2.0) for layer in plan.model.layers})
