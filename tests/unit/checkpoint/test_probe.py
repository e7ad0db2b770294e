from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.checkpoint_fixtures import FakeEngine, Run, plan_of
from trainer.checkpoint.probe import TOLERANCE, check_probe, probe_loss
from trainer.checkpoint.resume import checkpoint_to_resume, load
from trainer.config.plan import make_plan
from trainer.config.schema import (
    BatchConfig,
    Dtype,
    LayoutConfig,
    ModelConfig,
    PipelineSchedule,
    PositionKind,
    TridentConfig,
)
from trainer.engine.face import Evaluation
from trainer.errors import CheckpointError
from trainer.micro_batch import MicroBatch
from trainer.topology.groups import Group, single_process_groups

CPU = torch.device("cpu")


def probed(micro_batch_size: int = 1, layout: LayoutConfig | None = None) -> list[MicroBatch]:
    seen: list[MicroBatch] = []

    class Engine(FakeEngine):
        def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
            seen.extend(micro_batches)
            return Evaluation(torch.tensor(1.5), torch.tensor(16.0))

    config = TridentConfig(
        model=ModelConfig(seq_length=16),
        layout=layout or LayoutConfig(),
        batch=BatchConfig(global_batch_size=16, micro_batch_size=micro_batch_size),
    )
    assert probe_loss(Engine(), make_plan(config, 100), CPU) == 1.5
    return seen


def test_the_batch_is_the_same_sequence_whatever_the_layout() -> None:
    (one,) = probed()
    assert one.input_ids.shape == (1, 16)
    assert torch.equal(one.input_ids[:, 1:], one.targets()[:, :-1])
    assert 0 <= int(one.input_ids.min()) <= int(one.targets().max()) < 100
    assert len(set(one.targets()[0].tolist())) > 10
    (many,) = probed(micro_batch_size=4)
    assert torch.equal(many.input_ids, one.input_ids.expand(4, -1))
    pipeline = LayoutConfig(pipeline_parallel_size=2)
    assert len(probed(layout=pipeline)) == 1
    dual = replace(pipeline, pipeline_schedule=PipelineSchedule.dualpipev)
    assert [torch.equal(batch.targets(), one.targets()) for batch in probed(layout=dual)] == [True] * 4


@pytest.mark.parametrize("dtype", Dtype)
def test_another_loss_is_an_error(dtype: Dtype) -> None:
    tolerance = TOLERANCE[dtype]
    check_probe(2.0, 2.0 * (1 + 0.9 * tolerance), "fp32", dtype)
    check_probe(2.0, 2.0 * (1 - 0.9 * tolerance), dtype.value, Dtype.fp32)
    for found in (2.0 * (1 + 1.1 * tolerance), 2.0 * (1 - 1.1 * tolerance), math.nan, math.inf):
        with pytest.raises(CheckpointError, match=r"the loss on the fixed micro-batch must be 2 as when") as caught:
            check_probe(2.0, found, dtype.value, Dtype.fp32)
        assert caught.value.exit_code == 4


def test_weights_that_mean_something_else_are_refused_on_loading(run: Run, control: Group) -> None:
    run.steps(2)
    found = checkpoint_to_resume(plan_of().config, run.store, control)
    assert found is not None
    engine = FakeEngine()
    load(found, engine, plan_of(), single_process_groups())
    engine.probe *= 1.001
    with pytest.raises(CheckpointError, match="the weights do not mean the same to this model"):
        load(found, engine, plan_of(), single_process_groups())


@pytest.mark.parametrize(("length", "rows"), [(32, 2), (4, 1)])
def test_a_run_of_other_lengths_is_asked_at_the_length_of_the_one_that_saved(
    tmp_path: Path, control: Group, length: int, rows: int
) -> None:
    config = replace(plan_of().config, model=ModelConfig(seq_length=16, position=PositionKind.rope))
    plan = make_plan(replace(config, checkpoint=replace(config.checkpoint, every=2)), 100)
    run = Run(tmp_path, control, plan)
    run.steps(2)
    found = checkpoint_to_resume(plan.config, run.store, control)
    assert found is not None
    seen: list[tuple[int, ...]] = []

    class Engine(FakeEngine):
        def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
            seen.extend(tuple(batch.input_ids.shape) for batch in micro_batches)
            return super().evaluate(micro_batches)

    engine = Engine()
    other = make_plan(replace(plan.config, model=replace(plan.config.model, seq_length=length)), 100)
    load(found, engine, other, single_process_groups())
    # About as many tokens as the run computes at once, and at least one sequence.
    assert seen == [(rows, 16)]
    engine.probe *= 1.001
    with pytest.raises(CheckpointError, match="the weights do not mean the same to this model"):
        load(found, engine, other, single_process_groups())


def test_a_length_that_cannot_be_cut_is_not_compared_and_said(
    tmp_path: Path, control: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(plan_of().config, model=ModelConfig(seq_length=15, position=PositionKind.rope))
    plan = make_plan(replace(config, checkpoint=replace(config.checkpoint, every=2)), 100)
    run = Run(tmp_path, control, plan)
    run.steps(2)
    found = checkpoint_to_resume(plan.config, run.store, control)
    assert found is not None
    layout = LayoutConfig(tensor_parallel_size=2, sequence_parallel=True)
    model = replace(plan.config.model, seq_length=16)
    engine = FakeEngine()
    engine.probe = math.nan
    load(
        found,
        engine,
        make_plan(replace(plan.config, model=model, layout=layout), 100),
        single_process_groups(),
    )
    assert "sequences of 15 tokens" in capsys.readouterr().out
